"""Automatic checkpoints: at intervals, after long cells, and when memory is short; and which are deleted to make room.

A notebook can have its own policy in its metadata: ``{"torpor": {"checkpoint_every": 5, "keep_last": 3}}``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from torpor import processes
from torpor.errors import NotFound, TorporError
from torpor_jupyter.data.records import CheckpointRecord, KernelRecord
from torpor_jupyter.kernels.provisioner import TorporProvisioner
from torpor_jupyter.kernels.service import Service
from torpor_jupyter.server import memory_pressure

LAST_SECONDS = 10.0
"""How long the clean-up after the last checkpoints may take when the server stops, in seconds."""
TICK_SECONDS = 2.0
"""How often the policies are applied."""


@dataclass(frozen=True)
class Policy:
    """The policy of a notebook or of the server. 0 turns a rule off."""

    checkpoint_every: float
    """Minutes between two checkpoints."""
    checkpoint_after: float
    """Make a checkpoint after a cell that took at least so many seconds."""
    keep_last: float
    """How many automatic checkpoints of a kernel to keep."""


class Policies:
    """Applies the policies of one server. All methods belong to its event loop."""

    def __init__(
        self, service: Service, loop: asyncio.AbstractEventLoop, policy: Policy, *, quota: int, park_below: float
    ) -> None:
        """Begin.

        Args:
            service: the server's.
            loop: the server's, which may not run yet.
            policy: of notebooks that have none of their own.
            quota: bytes of the disk that the store's packs may take; 0: as much as there is.
            park_below: percent of memory left below which idle kernels are parked; 0: never.
        """
        self._service, self._default, self._quota, self._park_below = service, policy, quota, park_below
        self._registry, self._loop = service.registry, loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[str, str] = {}
        """By kernel: why its last automatic checkpoint failed. The same reason is logged only once."""
        service.when_saved = lambda kernel_id: self._begin(self._free_disk(kernel_id))
        service.when_cell_ended = lambda kernel_id, seconds: self._begin(self._cell_ended(kernel_id, seconds))
        self._begin(self._tick())

    def stop(self) -> None:
        """Begin no more checkpoints. Those in progress end.

        The engine's thread cannot be cancelled: it would end the process of a kernel that nobody registers as parked.
        """
        self._service.when_cell_ended = lambda *_: None
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until nothing is in progress any more, also what the server's last checkpoints have begun.

        A task that is left when the event loop stops can keep the process from ending: the thread in which it has read
        a notebook waits for the task's end (anyio's worker threads).
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._service.log.error("An automatic checkpoint or clean-up of Torpor failed", exc_info=error)

    # ------------------------------------------------------------------------------------------ when

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                for kernel_id in self._registry.manager.list_kernel_ids():
                    with suppress(NotFound):  # it has ended meanwhile
                        await self._apply(kernel_id)
                if self._park_below:
                    await self._free_memory()
            except Exception:  # of a contents manager, say: the policies go on
                self._service.log.exception("Torpor could not apply its policies")

    async def _apply(self, kernel_id: str) -> None:
        every = (await self._policy_of(kernel_id)).checkpoint_every * 60
        if every and self._can_be_saved(kernel_id) and self._has_run(kernel_id) and self._age(kernel_id) >= every:
            await self._save(kernel_id)

    async def _cell_ended(self, kernel_id: str, seconds: float) -> None:
        with suppress(NotFound):  # it has ended meanwhile
            after = (await self._policy_of(kernel_id)).checkpoint_after
            if after and seconds >= after and self._can_be_saved(kernel_id):
                await self._save(kernel_id)

    def _can_be_saved(self, kernel_id: str) -> bool:
        state = self._registry.state(kernel_id)
        kernel: Any = self._registry.manager.get_kernel(kernel_id)
        return not (state.parked or state.operation) and isinstance(kernel.provisioner, TorporProvisioner)

    def _has_run(self, kernel_id: str) -> bool:
        """Whether a cell was sent or has run since the last checkpoint."""
        state = self._registry.state(kernel_id)
        gate = state.gate
        return gate.cells_sent > state.saved_cells or bool(gate.started) or gate.last_ended > state.saved_at

    def _age(self, kernel_id: str) -> float:
        return time.monotonic() - self._registry.state(kernel_id).saved_at

    async def _policy_of(self, kernel_id: str) -> Policy:
        """The policy for a kernel: the server's, overridden by the settings of the kernel's notebook."""
        path = next((session["path"] for session in self._registry.describe(kernel_id)["sessions"]), None)
        found = await self._service.notebooks.settings(path) if path else {}
        names = [field.name for field in fields(Policy)]
        own = {n: found[n] for n in names if type(found.get(n)) in (int, float) and found[n] >= 0}
        return replace(self._default, **own)

    async def _save(self, kernel_id: str) -> None:
        state = self._registry.state(kernel_id)
        try:
            await asyncio.shield(self._service.save(kernel_id, reason="rule"))
            self._failures.pop(kernel_id, None)
        except TorporError as error:
            state.saved_at = time.monotonic()  # it is tried again when the time has passed once more
            if self._failures.get(kernel_id) != str(error):
                self._failures[kernel_id] = str(error)
                self._service.log.warning("Kernel %s could not be saved automatically: %s", kernel_id, error)

    # ------------------------------------------------------------------------------------------ memory

    async def _free_memory(self) -> None:
        """Park idle kernels, the largest first, until enough memory is free."""
        for kernel_id in self._idle():
            left = memory_pressure.available() * 100
            if left >= self._park_below:
                return
            self._service.log.warning("Only %.1f %% of memory is left: kernel %s is parked", left, kernel_id)
            try:
                await asyncio.shield(self._service.park(kernel_id, reason="memory"))
            except TorporError as error:
                self._service.log.warning("Kernel %s cannot be parked: %s", kernel_id, error)

    def _idle(self) -> list[str]:
        sizes = {}
        for kernel_id in self._registry.manager.list_kernel_ids():
            kernel: Any = self._registry.manager.get_kernel(kernel_id)
            if self._registry.is_idle(kernel_id) and self._can_be_saved(kernel_id):
                sizes[kernel_id] = processes.resident(kernel.provisioner.pid or 0)
        return sorted(sizes, key=lambda kernel_id: -sizes[kernel_id])

    # ------------------------------------------------------------------------------------------ room

    async def _free_disk(self, kernel_id: str) -> None:
        """Delete a kernel's automatic checkpoints beyond keep_last; while the store is full, the oldest of all kernels.

        Pinned checkpoints, those in which kernels are parked, and the last one of each kernel of this server stay.
        """
        keep = int((await self._policy_of(kernel_id)).keep_last) if kernel_id in self._registry.manager else 0
        if keep:
            automatic = await self._service.workers.read(self._automatic)
            many = sum(record.kernel_id == kernel_id for record in automatic) - keep
            mine = [record for record in await self._deletable() if record.kernel_id == kernel_id]
            for record in mine[: max(many, 0)]:
                await self._delete(record)
        if not self._quota:
            return
        going = await self._deletable()
        while (size := await self._service.workers.run(self._registry.store.used)) > self._quota:
            if not going:
                self._service.log.warning(
                    "The store has %d bytes, above its quota of %d, but no automatic checkpoint that may be removed",
                    size,
                    self._quota,
                )
                return
            if not await self._delete(going.pop(0)):
                return  # to delete more would free nothing now; the next one that goes takes the data of this one along

    async def _deletable(self) -> list[CheckpointRecord]:
        """The automatic checkpoints that may be deleted, oldest first."""
        automatic = await self._service.workers.read(self._automatic)
        needed = await self._service.workers.read(self._parked)
        needed |= {self._registry.state(kernel_id).head for kernel_id in self._registry.manager.list_kernel_ids()}
        return [record for record in automatic if record.id not in needed]

    def _parked(self) -> set[str]:
        """The checkpoints in which kernels of any server are parked."""
        found = self._registry.records.all(KernelRecord)
        return {kernel.snapshot for kernel in found if isinstance(kernel, KernelRecord)}

    def _automatic(self) -> list[CheckpointRecord]:
        """The automatic checkpoints that are not pinned, oldest first."""
        return [
            record
            for record in self._registry.records.all(CheckpointRecord)
            if isinstance(record, CheckpointRecord) and record.automatic and not record.pinned
        ]

    async def _delete(self, record: CheckpointRecord) -> bool:
        """Delete a checkpoint. Return whether deleting more could make room: while the store is in use, it cannot."""
        try:
            report = await asyncio.shield(self._service.checkpoints.delete(record.kernel_id, record.id))
        except TorporError as error:
            self._service.log.warning("Checkpoint %s could not make room: %s", record.id, error)
            return True
        return not report.in_use

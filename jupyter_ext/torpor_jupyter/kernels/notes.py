"""Notes for the next server, in case this one is killed: which notebooks use which kernels, and the output of cells.

They are written every few seconds; a crash of the server loses later messages. The kernels live on, and
`torpor_jupyter.kernels.recorder` continues the notes.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from torpor.errors import TorporError
from torpor_jupyter.data.records import KernelRecord, write_private
from torpor_jupyter.kernels import ipython
from torpor_jupyter.kernels.listener import Listener
from torpor_jupyter.kernels.provisioner import TorporProvisioner
from torpor_jupyter.kernels.recorder import Watch, is_recorded, read_note
from torpor_jupyter.kernels.registry import Registry, json_connection, kernel_info_of, tell_kernel_info
from torpor_jupyter.kernels.state import State, Unsuitable
from torpor_jupyter.kernels.transcript import Transcript, as_text
from torpor_jupyter.kernels.workers import Workers

IDLE_SECONDS = 5.0
"""How long an idle kernel may take to answer; a kernel that takes longer still runs a cell."""
RECORDER_SECONDS = 5.0
"""How long a recorder may take to start, and to end."""
HEARD_SECONDS = 0.5
"""How long messages that the kernel sent before that answer may take."""


class Notes:
    """The notes on one server's kernels. All methods belong to its event loop."""

    def __init__(self, registry: Registry, workers: Workers, listener: Listener) -> None:
        """Write nothing yet."""
        self._registry, self._workers, self._listener = registry, workers, listener
        self._noted: dict[str, tuple[Any, ...]] = {}
        """By kernel: the content of the last note."""
        self._catching_up: set[asyncio.Task[None]] = set()
        self._watch: Watch | None = None
        """Starts the recorder when this process has ended."""

    def watch(self) -> None:
        """Let a recorder follow the kernels when this process has ended. An error is only logged."""
        try:
            self._watch = Watch(self._registry.records.folder, self._registry.server)
        except OSError as error:
            self._registry.log.warning("What kernels say after a crash of this server will be lost: %s", error)

    async def write(self) -> None:
        """Write what has changed since the last time. Release kernels that another server has woken."""
        with suppress(Unsuitable):  # the server is stopping
            for record in await self._workers.read(self._read, self._at_rest()):
                if self._is_at_rest(record.id):
                    self._compare(record)
            await self._workers.read(self._write, dict(filter(None, map(self._changed, self._at_rest()))))
        self._noted = {id: noted for id, noted in self._noted.items() if id in self._registry.manager}

    def _at_rest(self) -> list[str]:
        return [id for id in self._registry.manager.list_kernel_ids() if self._is_at_rest(id)]

    def _changed(self, kernel_id: str) -> tuple[str, dict[str, Any]] | None:
        """The note on a living kernel, if it differs from the last one."""
        state, kernel = self._registry.state(kernel_id), self._registry.suitable(kernel_id).kernel
        if state.parked or not kernel:
            return None
        gate = state.gate
        now = (kernel.id, state.transcript.changes, gate.execution_count, gate.cell)
        if self._noted.get(kernel_id, (kernel.id, 0, 0, "")) == now:
            return None
        self._noted[kernel_id] = now
        known = {"execution_count": gate.execution_count, "cell": gate.cell, "cells": state.transcript.known()}
        info = kernel_info_of(self._registry.kernel_manager(kernel_id))
        return kernel_id, known | {"process": asdict(kernel.id), "kernel_info": info, "recorded": ""}

    def _is_at_rest(self, kernel_id: str) -> bool:
        """Whether Torpor manages a kernel, and no operation on it is in progress."""
        registry = self._registry
        known = kernel_id in registry.manager and isinstance(registry.provisioner(kernel_id), TorporProvisioner)
        return known and not registry.state(kernel_id).operation

    def _read(self, kernels: list[str]) -> list[KernelRecord]:
        found = []
        for id in kernels:
            with suppress(TorporError):
                found.append(self._registry.records.read(KernelRecord, id))
        return found

    def _compare(self, record: KernelRecord) -> None:
        """Correct the record of a kernel; release the kernel if another server has woken it."""
        registry, id = self._registry, record.id
        provisioner, state = registry.provisioner(id), registry.state(id)
        if state.parked and not record.parked and record.server == registry.server:
            registry.remember(provisioner)  # the disk was full when it was parked
        elif state.parked and not record.parked:
            registry.log.info("Kernel %s was woken by another server", id)
            registry.release(id, lives=True)
        elif record.sessions != (found := registry.sessions_of(id)) and (found or not state.parked):
            try:
                now = registry.records.read(KernelRecord, id)  # it may have been parked and woken meanwhile
                now.sessions = found
                registry.records.write(now)
            except TorporError as error:
                registry.log.warning("%s", error)

    def _write(self, changed: dict[str, dict[str, Any]]) -> None:
        for id, note in changed.items():
            try:
                write_private(self._registry.note_path(id), json.dumps(note | {"cells": as_text(note["cells"])}))
            except OSError as error:
                self._registry.log.warning("What the cells of kernel %s say is not kept: %s", id, error)

    # ------------------------------------------------------------------------------------------ the next server

    async def take_up(self, kernel_id: str) -> None:
        """Continue with the note on a living kernel that an earlier server has left."""
        state, folder = self._registry.state(kernel_id), self._registry.records.folder
        await self._load(kernel_id, state)
        deadline = time.monotonic() + RECORDER_SECONDS
        while await self._workers.read(is_recorded, folder, kernel_id) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        recorded = await self._load(kernel_id, state)
        lost = (
            f"What this cell said about {recorded}, when its server ended, may be missing.\n"
            if recorded
            else f"What this cell said until {datetime.now():%H:%M:%S}, while no server ran, is lost.\n"
        )
        for cell in state.transcript.running:
            cell.tell(lost)
        task = asyncio.ensure_future(self._catch_up(kernel_id, state))
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    async def _load(self, kernel_id: str, state: State) -> str:
        """Read the note on a kernel. Also return since when a recorder has written it, if one has."""
        kernel = self._registry.suitable(kernel_id).kernel
        note = await self._workers.read(read_note, self._registry.records.folder, kernel_id)
        if not kernel or note.get("process") != asdict(kernel.id):
            return ""
        state.gate.execution_count, state.gate.cell = note["execution_count"], note["cell"]
        state.transcript.put_before(Transcript.of(note["cells"]))
        for cell in state.transcript.running:
            cell.taken_up = True
        manager = self._registry.kernel_manager(kernel_id)
        if note["kernel_info"]:
            tell_kernel_info(manager, note["kernel_info"])
        if state.transcript.running:
            manager.execution_state = "busy"  # else jupyter_server asks it, and lets pages wait for the answer
        self._listener.go_on(kernel_id)
        return str(note["recorded"])

    async def _catch_up(self, kernel_id: str, state: State) -> None:
        """End the cells that have ended while no server ran, and count the kernel's cells.

        An idle kernel answers at once. The end of a cell that still runs will be received.
        """
        manager = self._registry.kernel_manager(kernel_id)
        running = state.transcript.running
        try:
            known = json_connection(manager.get_connection_info())
            count = await ipython.count_of_cells(known, seconds=IDLE_SECONDS)
        except ipython.NoAnswer:
            return
        await asyncio.sleep(HEARD_SECONDS)
        if kernel_id in self._registry.manager and self._registry.state(kernel_id) is state and not state.parked:
            self._listener.end(kernel_id, [cell for cell in running if not cell.done])
            if count is not None and not state.gate.cells_sent:
                state.gate.execution_count = count

    def stop(self) -> None:
        """Stop asking kernels."""
        for task in self._catching_up:
            task.cancel()

    async def hand_over(self, kernels: list[str]) -> None:
        """Before the server ends, write the notes, and let a recorder continue for kernels that live on."""
        await self.write()
        folder = self._registry.records.folder
        followed = [id for id in kernels if self._registry.state(id).transcript.running]
        if followed and self._watch:
            self._watch.end(lives=True)
            deadline = time.monotonic() + RECORDER_SECONDS
            while not all(is_recorded(folder, id) for id in followed) and time.monotonic() < deadline:
                if self._watch.is_over():  # a signal to all processes of the server has ended it, too
                    break
                await asyncio.sleep(0.02)

    def close(self) -> None:
        """Start no recorder."""
        if self._watch:
            self._watch.end(lives=False)
            self._watch = None

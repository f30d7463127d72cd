"""The operations on a kernel, step by step: save, park, wake, fork, discard. The engine works in threads of its own."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any
from uuid import uuid4

import torpor
from torpor import Files, LastToStop, Series
from torpor.errors import Refused, RestoreFailed, TorporError
from torpor.store import SnapshotInfo
from torpor_jupyter.data.notebooks import Notebooks
from torpor_jupyter.data.records import MANUAL, TITLES, CheckpointRecord, KernelRecord, SessionRecord
from torpor_jupyter.kernels import forks, ipython
from torpor_jupyter.kernels.checkpoints import Checkpoints
from torpor_jupyter.kernels.connections import Connections
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.provisioner import TorporProvisioner
from torpor_jupyter.kernels.quiescing import KernelSockets, debugger_outside, is_io_thread
from torpor_jupyter.kernels.registry import PARKED, TAG, Registry, json_connection, kernel_info_of
from torpor_jupyter.kernels.state import Cancelled, Operation, Unsuitable, as_json
from torpor_jupyter.kernels.workers import Workers

JOURNAL = "-journal"
"""Part of the name of SQLite's rollback journals."""
TRIES = 4
"""How often a save is tried again if the reason for its refusal may pass (a file that is being replaced, say)."""
AGAIN_SECONDS = 0.2
REPLY_SECONDS = 5.0
"""How long a kernel that was idle may take for its first answer."""
IDLE_SECONDS = 1.0
"""How long a message on a kernel's iopub channel may take to reach the server, which may be busy."""
FD_OF = re.compile(r"process (\d+) \(.*?\), fd (\d+) ")
"""The subject of a reason, if that is a descriptor: PID and number."""
TEXT = 1000
"""How many characters of a tag's value to keep; the store accepts 1024."""


class Operations:
    """The operations on one server's kernels, one at a time for each kernel. All methods belong to its event loop."""

    def __init__(
        self,
        registry: Registry,
        checkpoints: Checkpoints,
        connections: Connections,
        notebooks: Notebooks,
        workers: Workers,
        emit: Callable[[str, str], None],
    ) -> None:
        """Do nothing yet. `emit` is called with a kernel's id and the name of an event."""
        self._registry, self._checkpoints, self._connections = registry, checkpoints, connections
        self._notebooks, self._workers, self._emit, self._log = notebooks, workers, emit, registry.log

    @asynccontextmanager
    async def begin(self, kernel_id: str, doing: str) -> AsyncIterator[Operation]:
        """Begin an operation; until it ends, no other may begin. Raises NotFound; Unsuitable if one is in progress."""
        state = self._registry.state(kernel_id)
        if state.operation:
            raise Unsuitable(
                f"another operation on the kernel is in progress: {state.operation.doing}",
                advice="try again when it has ended",
            )
        self._registry.suitable(kernel_id)
        state.condition = self._registry.condition(kernel_id)
        state.operation = Operation(doing)
        self._emit(kernel_id, doing)
        try:
            yield state.operation
        except BaseException:
            state.operation = None
            self._emit(kernel_id, "failed")
            raise
        state.operation = None

    def cancel(self, kernel_id: str) -> dict[str, Any]:
        """Cancel the operation on a kernel: the kernel will be as before. What is finished already is not undone.

        Raises:
            NotFound, Unsuitable: there is no such kernel, or no operation on it is in progress.
        """
        self._registry.provisioner(kernel_id)
        operation = self._registry.state(kernel_id).operation
        if operation is None:
            raise Unsuitable(
                "no operation on the kernel is in progress", advice="it has ended already, or has not begun"
            )
        operation.cancelled = True
        return self._registry.describe(kernel_id)

    async def save(
        self,
        kernel_id: str,
        operation: Operation,
        then: str,
        *,
        name: str,
        reason: str,
        about: str = "",
        note: str = "",
    ) -> SnapshotInfo:
        """Make a checkpoint while the gate is shut. Without a name it gets the title of its reason."""
        name = name or TITLES[reason]
        provisioner, state = self._registry.suitable(kernel_id), self._registry.state(kernel_id)
        process = provisioner.kernel
        if process is None or process.poll() is not None:
            raise Unsuitable(f"kernel {kernel_id} is not running")
        if not provisioner.lives_on and debugger_outside(process.pid):  # Torpor did not start it
            raise Unsuitable(
                "its debugger is connected from outside, and a woken kernel would wait for it for ever",
                advice="turn the debugger off; kernels that Torpor has started keep theirs",
            )
        manager = self._registry.kernel_manager(kernel_id)
        sessions = self._registry.sessions_of(kernel_id)
        notebook = sessions[0].path if sessions else ""
        text, listing = (
            await self._notebooks.read(self._registry.contents_path(notebook)),
            await self._listing(kernel_id),
        )
        tags = {TAG: kernel_id, "notebook": notebook[-TEXT:], "name": name[:TEXT], PARKED: "yes" * (then == "kill")}
        sockets = KernelSockets(manager.get_connection_info())
        last = LastToStop(is_io_thread, partial(sockets.wait_drained, process.pid)) if then == "kill" else None
        save = partial(
            torpor.checkpoint,
            process.pid,
            store=self._registry.store,
            then="kill" if then == "kill" else "run",
            tags={key: _printable(value) for key, value in tags.items() if value},
            progress=operation.progress,
            last=last,
            series=state.series,
        )
        cells = state.gate.cells_sent
        try:
            info: SnapshotInfo = await self._workers.save(_when_possible, save)
        except TorporError as error:
            named = await self._named(kernel_id, process.pid, error)
            if not isinstance(named, Cancelled):
                state.unsaved = as_json(named) | {"at_ns": time.time_ns()}
            if named is error:
                raise
            raise named from error
        state.unsaved = None
        record = CheckpointRecord(
            info.id,
            kernel_id,
            manager.kernel_name,
            json_connection(manager.get_connection_info()),
            str(provisioner.cwd),
            name=name,
            note=note,
            automatic=reason not in MANUAL,
            reason=reason,
            about=about,
            parent=state.head,
            notebook=notebook,
            cell=state.gate.cell,
            execution_count=state.gate.execution_count,
            execution_state=manager.execution_state or "idle",
            outstanding=list(state.gate.unanswered),
            kernel_info=kernel_info_of(manager),
            log=state.log,
        )
        state.head, state.saved_at, state.saved_cells = info.id, time.monotonic(), cells
        cells_said = state.transcript.as_text() if then == "kill" else ""
        await asyncio.to_thread(self._checkpoints.add, record, text, listing, cells_said)
        return info

    async def _listing(self, kernel_id: str) -> str:
        """The variables of an idle kernel of IPython, as text; empty for others. The gate is shut."""
        manager = self._registry.kernel_manager(kernel_id)
        if not self._registry.gate(kernel_id).unanswered:  # its message that it is idle again may be in transit
            await _wait_until(lambda: manager.execution_state != "busy")
        idle = self._registry.is_idle(kernel_id)
        if not idle or kernel_info_of(manager).get("implementation") != ipython.IMPLEMENTATION:
            return ""
        asked = manager.last_activity
        try:
            listing = await ipython.list_variables(json_connection(manager.get_connection_info()))
            # Its message that it is idle again may be in transit: wait, so that it is not saved with the kernel.
            await _wait_until(lambda: manager.execution_state == "idle" and manager.last_activity != asked)
            return listing
        except ipython.NoAnswer as error:
            self._log.warning("Cannot list the variables of kernel %s: %s", kernel_id, error)
            return ""

    async def _named(self, kernel_id: str, pid: int, error: TorporError) -> TorporError:
        """Add the names of the variables that hold refused descriptors to a refusal, if an idle IPython knows them."""
        if not isinstance(error, Refused):
            return error
        found = {reason: FD_OF.match(reason.subject) for reason in error.reasons}
        numbers = {reason: int(match[2]) for reason, match in found.items() if match and int(match[1]) == pid}
        manager = self._registry.kernel_manager(kernel_id)
        info = kernel_info_of(manager)
        if not numbers or not self._registry.is_idle(kernel_id) or info.get("implementation") != ipython.IMPLEMENTATION:
            return error
        try:
            names = await ipython.holders(json_connection(manager.get_connection_info()), sorted(numbers.values()))
        except ipython.NoAnswer:
            return error
        reasons = [
            replace(reason, why=f"{reason.why} ({names[number]})")
            if (number := str(numbers.get(reason))) in names
            else reason
            for reason in error.reasons
        ]
        return Refused(error.heading, reasons)

    async def park(
        self, kernel_id: str, operation: Operation, *, name: str, reason: str, about: str = ""
    ) -> SnapshotInfo:
        """Save the kernel and end its process; the gate stays shut until the kernel is woken."""
        provisioner, state = self._registry.suitable(kernel_id), self._registry.state(kernel_id)
        if state.parked:
            raise Unsuitable(f"kernel {kernel_id} is parked already")
        state.gate.close()
        provisioner.parked = True  # its process is about to end, and that is no reason to restart it
        try:
            info = await self.save(kernel_id, operation, "kill", name=name, reason=reason, about=about)
        except BaseException:
            provisioner.parked = False
            state.gate.open()
            raise
        provisioner.park()
        manager = self._registry.kernel_manager(kernel_id)
        state.execution_state = manager.execution_state or "idle"
        manager.execution_state = "busy"  # jupyter_server sends no "nudge" to a busy kernel, and waits for it
        state.gate.kernel_info = kernel_info_of(manager)
        state.parked, state.parked_ns = info.id, time.time_ns()
        self._registry.remember(provisioner)
        await self._workers.run(self._registry.pin, info.id, True)
        return info

    async def wake(
        self,
        kernel_id: str,
        operation: Operation,
        info: SnapshotInfo,
        record: CheckpointRecord,
        *,
        again: bool,
        files: Files = "as-they-were",
    ) -> None:
        """Give a parked kernel a process again, from any of its checkpoints, and open the gate.

        Args:
            kernel_id: the kernel.
            operation: notes the progress.
            info: the snapshot.
            record: the record of the checkpoint.
            again: whether the kernel may have gone on from this checkpoint before.
            files: as for `torpor.restore`.
        """
        operation.done = operation.total = 0
        provisioner, state = self._registry.suitable(kernel_id), self._registry.state(kernel_id)
        manager = self._registry.kernel_manager(kernel_id)
        moved = json_connection(manager.get_connection_info()) != record.connection
        if moved:
            self._connections.move(kernel_id, provisioner, record.connection)
        self._connections.listener.load(kernel_id, self._checkpoints.cells.kept(info.id), record.outstanding)
        sockets = KernelSockets(record.connection)
        counts = self._connections.counts(kernel_id)

        def connected() -> None:
            if not sockets.wait_connected(counts):
                self._log.warning("Kernel %s: not all clients reconnected in time; output may be lost", kernel_id)

        wake = partial(
            torpor.restore,
            info,
            store=self._registry.store,
            detach=True,
            progress=operation.progress,
            first=is_io_thread,
            connected=connected,
            files=files,
            # The parked state stays in its snapshot. But its named shared memory would be in the way of this one's.
            instead_of=state.parked if state.parked != info.id else None,
            series=state.series,
        )
        job = await self._workers.wake(wake)
        try:
            provisioner.adopt(KernelProcess(job.tree_pid, job=job))
        except ProcessLookupError:
            raise RestoreFailed("the kernel ended as soon as it was woken", advice="see its log") from None
        try:  # it lives, whatever fails now: `finally` opens the gate, so that no request waits for ever
            if state.parked:
                await self._workers.run(self._registry.unpin, state.parked)
            manager.execution_state = record.execution_state
            manager.last_activity = datetime.now(timezone.utc)  # it may have been parked because that was long ago
            state.parked, state.parked_ns, state.head = "", 0, info.id
            state.gate.kernel_info = None
            state.gate.abort_unanswered(set(record.outstanding))
            if record.kernel_info.get("implementation") != ipython.IMPLEMENTATION:
                await self._connections.reconnect_clients(kernel_id, record, provisioner.kernel)
            if again:
                await self._new_history(manager, record)
            self._registry.remember(provisioner)
            for warning in job.warnings:
                self._log.warning("Kernel %s was woken: %s", kernel_id, warning)
        finally:
            state.gate.open()

    async def fork(
        self,
        info: SnapshotInfo,
        record: CheckpointRecord,
        operation: Operation,
        path: str | None,
        text: str,
        files: Files,
    ) -> KernelRecord:
        """Wake a checkpoint as another kernel, write its notebook, and make both known to the server."""
        kernel_id = str(uuid4())
        file = os.path.join(self._registry.manager.connection_dir, f"kernel-{kernel_id}.json")
        notebook = os.path.join(self._registry.manager.root_dir, path) if path is not None else ""
        sessions = [SessionRecord(str(uuid4()), notebook, os.path.basename(notebook), "notebook")] if notebook else []
        series = Series()
        woken = await self._workers.wake(forks.wake, info, self._registry.store, record, operation, series, files)
        try:
            connection = await forks.give_identity(
                woken, record, uuid4().hex, file=file, notebook=notebook,
                logs=[str(self._registry.log_path(id)) for id in (record.kernel_id, record.log) if id],
                log=str(self._registry.log_path(kernel_id)),
            )  # fmt: skip
            if path is not None:
                await self._notebooks.write(path, text)
            fork = KernelRecord(
                kernel_id,
                record.kernel_name,
                connection,
                record.cwd,
                self._registry.manager.root_dir,
                sessions=sessions,
                kernel_info=record.kernel_info,
                log=record.log or record.kernel_id,
            )
            await self._registry.register(fork, woken.process)
        except BaseException:
            series.close()
            await _end(woken.process)
            raise
        state = self._registry.state(kernel_id)
        state.series = series
        state.head, state.gate.cell, state.gate.execution_count = info.id, record.cell, record.execution_count
        for warning in woken.warnings:
            self._log.warning("Kernel %s, a fork: %s", kernel_id, warning)
        return fork

    async def _new_history(self, manager: Any, record: CheckpointRecord) -> None:
        """Let IPython begin a new session in its history database.

        The database did not go back with the kernel. It has the number of the next cell already, and IPython would
        print a warning about that into the cell's output.
        """
        if record.kernel_info.get("implementation") != ipython.IMPLEMENTATION:
            return
        try:  # a busy kernel handles the request when its cell is done
            seconds = REPLY_SECONDS if record.execution_state == "idle" else 0.0
            await ipython.run_code(json_connection(manager.get_connection_info()), ipython.NEW_HISTORY, seconds=seconds)
            await _wait_until(lambda: manager.execution_state == "idle")  # its message of that may be in transit
        except ipython.NoAnswer as error:
            if record.execution_state == "idle":
                self._log.warning("Kernel %s: %s", record.kernel_id, error)

    async def discard(self, kernel_id: str, provisioner: TorporProvisioner, record: CheckpointRecord) -> None:
        """End a kernel's process without saving it. The kernel then counts as parked in the checkpoint of `record`."""
        state = self._registry.state(kernel_id)
        state.gate.close()
        provisioner.parked = True
        if provisioner.kernel:
            await _end(provisioner.kernel)
        provisioner.park()
        self._registry.kernel_manager(kernel_id).execution_state = "busy"
        state.parked, state.parked_ns, state.execution_state = record.id, time.time_ns(), record.execution_state


async def _wait_until(arrived: Callable[[], bool]) -> None:
    """Wait until a message of a kernel has arrived, at most IDLE_SECONDS: it may not come."""
    deadline = time.monotonic() + IDLE_SECONDS
    while not arrived() and time.monotonic() < deadline:
        await asyncio.sleep(0.001)


async def _end(process: KernelProcess) -> None:
    process.kill()
    while process.poll() is None:
        await asyncio.sleep(0.01)


def _when_possible(save: Callable[[], SnapshotInfo]) -> SnapshotInfo:
    """Save a process. If it is refused, try again while the reasons may pass.

    For example, the engine refuses a process during an SQLite transaction, while the rollback journal exists.
    """
    refused: list[Refused] = []
    while True:
        try:
            return save()
        except Refused as error:
            # A reason that comes for the second time will stay; only journals come and go.
            lasting = {str(reason) for reason in error.reasons if JOURNAL not in reason.subject}
            known = {str(reason) for earlier in refused for reason in earlier.reasons}
            refused.append(error)
            if lasting & known or len(refused) > TRIES:
                raise
            if lasting:
                time.sleep(AGAIN_SECONDS)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)

"""What is done to a kernel, step by step: saved, parked, woken, ended. The engine works in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

import torpor
from torpor import Files, LastToStop, Series
from torpor.errors import NotFound, Refused, RestoreFailed, TorporError
from torpor.store import SnapshotInfo
from torpor_jupyter import forks, ipython, variables
from torpor_jupyter.channels import reconnect
from torpor_jupyter.process import KernelProcess
from torpor_jupyter.provisioner import TorporProvisioner
from torpor_jupyter.records import BY_A_PERSON, NAMES, CheckpointRecord, KernelRecord, SessionRecord
from torpor_jupyter.roll import PARKED, TAG, Roll, json_connection, kernel_info_of
from torpor_jupyter.state import Operation, Unsuitable
from torpor_jupyter.traffic import Traffic, is_io_thread, settled

T = TypeVar("T")
JOURNAL = "-journal"
"""In the name of SQLite's rollback journals."""
JOURNAL_SECONDS = 1.0
"""How long a transaction is waited for; a longer one is a program's own, and is saved as it is."""
JOURNAL_TRIES = 4
REPLY_SECONDS = 5.0
"""How long a kernel that was idle may take for its first answer."""
LATE_SECONDS = 1.0
"""How long after a kernel said that it is done with a request its reply may come: kernels send it before."""
IDLE_SECONDS = 0.1
"""How long what a kernel says on its iopub channel may take to the server."""
TEXT = 1000
"""Characters of a tag's value that are kept; the store takes 1024."""


class Steps(Roll):
    """The steps that `Keeper` is made of. All methods belong to the server's event loop."""

    def __init__(self, *arguments: Any) -> None:
        """As Roll. One thread for all kernels: two checkpoints at once would only compete for the disk.

        Another one looks things up in the store, so that nobody who only asks waits for a checkpoint.
        """
        super().__init__(*arguments)
        self._engine = ThreadPoolExecutor(1, "torpor-engine")
        self._reader = ThreadPoolExecutor(1, "torpor-reader")
        self._unwritten: dict[str, CheckpointRecord] = {}
        """Of checkpoints that are in the store, but there was no room to write down what is known of them."""
        self._waiting: set[asyncio.Task[None]] = set()

    async def checkpoint_of(self, kernel_id: str, id: str) -> tuple[SnapshotInfo, CheckpointRecord]:
        """One checkpoint of a kernel. Raises NotFound, StoreError."""
        record = self._unwritten.get(id) or self.records.read(CheckpointRecord, id)
        info = await self.read(self.store.resolve, id)
        if info.id != id or info.tags.get(TAG) != kernel_id or record.kernel_id != kernel_id:
            raise NotFound(f"kernel {kernel_id} has no checkpoint {id}")
        return info, record

    async def _save(
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
        """Make a checkpoint, the gate being shut. Without a name it is called after its reason."""
        name = name or NAMES[reason]
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        process = provisioner.kernel
        if process is None or process.poll() is not None:
            raise Unsuitable(f"kernel {kernel_id} is not running")
        manager = self._manager(kernel_id)
        sessions = self._sessions(kernel_id)
        notebook = sessions[0].path if sessions else ""
        text, listing = await self.notebooks.read(self._relative(notebook)), await self._listing(kernel_id)
        tags = {TAG: kernel_id, "notebook": notebook[-TEXT:], "name": name[:TEXT], PARKED: "yes" * (then == "kill")}
        traffic = Traffic(manager.get_connection_info())
        last = LastToStop(is_io_thread, partial(traffic.drained, process.pid)) if then == "kill" else None
        save = partial(
            torpor.checkpoint,
            process.pid,
            store=self.store,
            then="kill" if then == "kill" else "run",
            tags={key: _printable(value) for key, value in tags.items() if value},
            progress=operation.progress,
            last=last,
            series=state.series,
        )
        cells = state.gate.cells
        info: SnapshotInfo = await self.run(_between_transactions, process.pid, save)
        record = CheckpointRecord(
            info.id,
            kernel_id,
            manager.kernel_name,
            json_connection(manager.get_connection_info()),
            str(provisioner.cwd),
            name=name,
            note=note,
            automatic=reason not in BY_A_PERSON,
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
        try:
            if listing:
                self.kept_variables.keep(info.id, listing, like=record.parent)
            if text:
                self.kept_notebooks.keep(info.id, text, like=record.parent)
                record.has_notebook = True
        except TorporError as error:
            self.log.error("Checkpoint %s is incomplete: %s", info.id, error)
        state.head, state.saved_at, state.saved_cells = info.id, time.monotonic(), cells
        try:
            self.records.write(record)
        except TorporError as error:  # the kernel is safe, and may have ended: that is no reason to fail
            self._unwritten[info.id] = record
            self.log.error("Checkpoint %s has no name until there is room: %s", info.id, error)
        return info

    async def _listing(self, kernel_id: str) -> str:
        """The variables of a kernel that can be asked, the gate being shut; else nothing."""
        manager = self._manager(kernel_id)
        idle = manager.execution_state == "idle" and not self.gate(kernel_id).unanswered
        if not idle or kernel_info_of(manager).get("implementation") != ipython.IMPLEMENTATION:
            return ""
        asked = manager.last_activity
        try:
            listing = await variables.take(json_connection(manager.get_connection_info()))
            # That it is idle again is on its way still: it is not to be saved with the kernel.
            deadline = time.monotonic() + IDLE_SECONDS
            while (manager.execution_state != "idle" or manager.last_activity == asked) and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            return listing
        except ipython.NoAnswer as error:
            self.log.warning("The variables of kernel %s are not listed: %s", kernel_id, error)
            return ""

    async def _park(
        self, kernel_id: str, operation: Operation, *, name: str, reason: str, about: str = ""
    ) -> SnapshotInfo:
        """Save and end; the gate is shut until it is woken."""
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        if state.parked:
            raise Unsuitable(f"kernel {kernel_id} is parked already")
        state.gate.shut += 1
        provisioner.parked = True  # its process is about to end, and that is no reason to restart it
        try:
            info = await self._save(kernel_id, operation, "kill", name=name, reason=reason, about=about)
        except BaseException:
            provisioner.parked = False
            state.gate.open()
            raise
        provisioner.park()
        manager = self._manager(kernel_id)
        state.execution_state = manager.execution_state or "idle"
        manager.execution_state = "busy"  # jupyter_server sends no "nudge" to a busy kernel, and waits for it
        state.gate.kernel_info = kernel_info_of(manager)
        state.parked, state.parked_ns = info.id, time.time_ns()
        self.remember(provisioner)
        await self.run(self._pin, info.id, True)
        return info

    async def _wake(
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
            operation: told the progress.
            info: the snapshot.
            record: what is known of it.
            again: it may have gone on from there already.
            files: as for `torpor.restore`.
        """
        operation.done = operation.total = 0
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        manager = self._manager(kernel_id)
        moved = json_connection(manager.get_connection_info()) != record.connection
        if moved:
            self._move(kernel_id, provisioner, record.connection)
        traffic = Traffic(record.connection)
        clients = self._clients(kernel_id)

        def connected() -> None:
            if not traffic.connected(clients):
                self.log.warning("Kernel %s: not every client was back in time; output may be lost", kernel_id)

        wake = partial(
            torpor.restore,
            info,
            store=self.store,
            detach=True,
            progress=operation.progress,
            first=is_io_thread,
            connected=connected,
            files=files,
            series=state.series,
        )
        job = await self.run(wake)
        try:
            provisioner.adopt(KernelProcess(job.tree_pid, job=job))
        except ProcessLookupError:
            raise RestoreFailed("the kernel ended as soon as it was woken", advice="see its log") from None
        if state.parked:
            await self.run(self._unpin, state.parked)
        state.gate.abort_unanswered(set(record.outstanding))
        manager.execution_state = record.execution_state
        state.parked, state.parked_ns, state.head = "", 0, info.id
        state.gate.kernel_info = None
        if record.kernel_info.get("implementation") != ipython.IMPLEMENTATION:
            await self._come_back(kernel_id, record, provisioner.kernel)
        if again:
            await self._new_history(manager, record)
        self.remember(provisioner)
        for warning in job.warnings:
            self.log.warning("Kernel %s was woken: %s", kernel_id, warning)
        state.gate.open()

    async def _fork(
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
        file = os.path.join(self.manager.connection_dir, f"kernel-{kernel_id}.json")
        notebook = os.path.join(self.manager.root_dir, path) if path is not None else ""
        sessions = [SessionRecord(str(uuid4()), notebook, os.path.basename(notebook), "notebook")] if notebook else []
        series = Series()
        woken = await self.run(forks.wake, info, self.store, record, operation, series, files)
        try:
            connection = await forks.become(
                woken, record, uuid4().hex, file=file, notebook=notebook,
                logs=[str(self.log_path(id)) for id in (record.kernel_id, record.log) if id],
                log=str(self.log_path(kernel_id)),
            )  # fmt: skip
            if path is not None:
                await self.notebooks.write(path, text)
            fork = KernelRecord(
                kernel_id,
                record.kernel_name,
                connection,
                record.cwd,
                self.manager.root_dir,
                sessions=sessions,
                kernel_info=record.kernel_info,
                log=record.log or record.kernel_id,
            )
            await self._register(fork, woken.process)
        except BaseException:
            series.close()
            await _end(woken.process)
            raise
        state = self.state(kernel_id)
        state.series = series
        state.head, state.gate.cell, state.gate.execution_count = info.id, record.cell, record.execution_count
        for warning in woken.warnings:
            self.log.warning("Kernel %s, a fork: %s", kernel_id, warning)
        return fork

    async def _new_history(self, manager: Any, record: CheckpointRecord) -> None:
        """Let IPython begin a new session in its database of cells.

        The database did not go back with the kernel: the next cell's number is there already, and IPython would say so
        in the middle of that cell's output.
        """
        if record.kernel_info.get("implementation") != ipython.IMPLEMENTATION:
            return
        try:  # a busy one takes it up when its cell is done
            seconds = REPLY_SECONDS if record.execution_state == "idle" else 0.0
            await ipython.ask(json_connection(manager.get_connection_info()), ipython.NEW_HISTORY, seconds=seconds)
        except ipython.NoAnswer as error:
            if record.execution_state == "idle":
                self.log.warning("Kernel %s: %s", record.kernel_id, error)

    async def _discard(self, kernel_id: str, provisioner: TorporProvisioner, record: CheckpointRecord) -> None:
        """End a kernel without keeping it, and let its manager wait for another."""
        state = self.state(kernel_id)
        state.gate.shut += 1
        provisioner.parked = True
        if provisioner.kernel:
            await _end(provisioner.kernel)
        provisioner.park()
        self._manager(kernel_id).execution_state = "busy"
        state.parked, state.parked_ns, state.execution_state = record.id, time.time_ns(), record.execution_state

    def _move(self, kernel_id: str, provisioner: TorporProvisioner, connection: dict[str, Any]) -> None:
        """The kernel had other ports at that time: everyone must connect anew."""
        self.manager.stop_watching_activity(kernel_id)
        provisioner.take_connection(connection)
        self.manager._kernel_ports[kernel_id] = self._manager(kernel_id).ports
        for connected in self._websockets(kernel_id):
            connected.websocket_handler.close()
        self.manager.start_watching_activity(kernel_id)

    def _clients(self, kernel_id: str) -> Counter[int]:
        """How many connections of this server's own each port of a kernel has."""
        manager = self._manager(kernel_id)
        channels = [channel for channels in self._channels(kernel_id) for channel in channels]
        channels += ["iopub"] if getattr(manager, "_activity_stream", None) else []
        channels += ["control"] if manager._control_socket else []
        return Counter(getattr(manager, f"{channel}_port") for channel in channels)

    async def _come_back(self, kernel_id: str, record: CheckpointRecord, process: KernelProcess | None) -> None:
        """Let clients be heard by a kernel that was woken and may hand over to nobody: see torpor_jupyter.channels.

        One in the middle of a cell learns that the old connections are dead when the cell is done, or when it waits for
        a person's line.
        """
        gate = self.gate(kernel_id)
        gate.doubtful = {id: {"status": "ok"} for id in record.outstanding}
        if not record.outstanding:
            await self._rename_clients(kernel_id)
        elif gate.asking and process:
            await self.read(settled, process.pid)
            for channels in self._channels(kernel_id):
                reconnect(stream.socket for name, stream in channels.items() if name == "stdin")

    async def _rename_clients(self, kernel_id: str) -> None:
        """Let this server's sockets to a kernel connect anew under other names, while requests wait."""
        manager = self._manager(kernel_id)
        with self.gate(kernel_id).hold():
            for channels in self._channels(kernel_id):
                # One name for all: the kernel asks that client on stdin which has sent the cell on shell.
                reconnect((stream.socket for name, stream in channels.items() if name != "iopub"), uuid4().hex.encode())
            if manager._control_socket:
                reconnect([manager._control_socket], uuid4().hex.encode())
            traffic = Traffic(manager.get_connection_info())
            await self.read(traffic.connected, self._clients(kernel_id))

    def when_reply_is_due(self, kernel_id: str, id: str) -> None:
        """A kernel is done with a request in whose middle it was woken: see whether its reply arrives."""
        task = asyncio.ensure_future(self._make_good(kernel_id, id))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _make_good(self, kernel_id: str, id: str) -> None:
        await asyncio.sleep(LATE_SECONDS)
        gate = self.gate(kernel_id)
        if id in gate.doubtful and kernel_id in self.manager:
            gate.make_good(id)
            await self._rename_clients(kernel_id)

    def _channels(self, kernel_id: str) -> list[dict[str, Any]]:
        """The streams to a kernel of each websocket, and those that wait for a browser to come back."""
        buffer = self.manager._kernel_buffers.get(kernel_id)
        kept = [buffer["channels"]] if buffer else []
        return [*(connection.channels for connection in self._websockets(kernel_id)), *kept]

    def _websockets(self, kernel_id: str) -> list[ZMQChannelsWebsocketConnection]:
        return [
            connection
            for connection in ZMQChannelsWebsocketConnection._open_sockets
            if connection.kernel_id == kernel_id
        ]

    @asynccontextmanager
    async def _operation(self, kernel_id: str, doing: str) -> AsyncIterator[Operation]:
        state = self.state(kernel_id)
        if state.operation:
            raise Unsuitable(f"the kernel is {state.operation.doing} already", advice="try again when that is done")
        self._suitable(kernel_id)
        state.operation = Operation(doing)
        self._told(kernel_id, doing)
        try:
            yield state.operation
        except BaseException:
            state.operation = None
            self._told(kernel_id, "failed")
            raise
        state.operation = None

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Let the engine's thread do something, when it is done with what it does."""
        return await asyncio.get_running_loop().run_in_executor(self._engine, call, *arguments)

    async def read(self, call: Callable[..., T], *arguments: Any) -> T:
        """Look something up in the store, also while the engine is at work."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, call, *arguments)

    def close(self) -> None:
        """Give up the threads."""
        self._engine.shutdown()
        self._reader.shutdown()


async def _end(process: KernelProcess) -> None:
    process.kill()
    while process.poll() is None:
        await asyncio.sleep(0.01)


def _between_transactions(pid: int, save: Callable[[], SnapshotInfo]) -> SnapshotInfo:
    """Save a process while SQLite has no journal open in it, as IPython's database of cells has for milliseconds.

    A journal that is there at one moment and gone at the next is refused by the engine; and another kernel would
    roll back the transaction of one that was ended in its middle (https://www.sqlite.org/lockingv3.html).
    """
    for _ in range(JOURNAL_TRIES):
        deadline = time.monotonic() + JOURNAL_SECONDS
        while _has_journal(pid) and time.monotonic() < deadline:
            time.sleep(0.002)
        try:
            return save()
        except Refused as error:
            if not all(JOURNAL in reason.subject for reason in error.reasons):
                raise
    return save()


def _has_journal(pid: int) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if JOURNAL in os.readlink(fd):
                return True
    return False


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)

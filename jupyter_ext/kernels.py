"""The kernels of a server that Torpor looks after: saved, parked, woken, taken back to a checkpoint.

A kernel is *living* (it has a process) or *parked* (it is in a snapshot, and its manager thinks it alive). While
something is done to it, requests wait at its Gate. The engine works in a thread of its own, one kernel at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager

import torpor
from torpor.errors import NotFound, RestoreFailed, TorporError
from torpor.jupyter_ext.channels import Gate
from torpor.jupyter_ext.process import KernelProcess, tree_root
from torpor.jupyter_ext.provisioner import KEEPER, TorporProvisioner
from torpor.jupyter_ext.records import CheckpointRecord, KernelRecord, ProcessId, Records, SessionRecord
from torpor.jupyter_ext.traffic import Traffic, is_io_thread
from torpor.remote.freeze import LastToStop
from torpor.store import SnapshotInfo, Store

T = TypeVar("T")
TAG = "jupyter-kernel"
"""The tag of a snapshot that says whose checkpoint it is."""
TEXT = 1000
"""Characters of a tag's value that are kept; the store takes 1024."""


class Unsuitable(TorporError):
    """What was asked does not fit the state that the kernel is in. It was not touched."""

    exit_code = 10


@dataclass(frozen=True)
class Returning:
    """A kernel that this server did not start and is about to register."""

    connection: dict[str, Any]
    process: KernelProcess | None
    """None: it is parked."""


@dataclass
class Operation:
    """What is being done to a kernel."""

    doing: str
    """``saving``, ``parking``, ``waking``, ``restoring``."""
    began_ns: int = field(default_factory=time.time_ns)
    done: int = 0
    total: int = 0
    """Bytes of memory done, and in all; 0 while unknown."""

    def progress(self, done: int, total: int) -> None:
        """For the engine; called from its threads."""
        self.done, self.total = done, total


@dataclass
class State:
    """What the server remembers of one kernel."""

    gate: Gate = field(default_factory=Gate)
    operation: Operation | None = None
    parked: str = ""
    """The snapshot that it is parked in."""
    parked_ns: int = 0
    execution_state: str = "idle"
    """While parked: what it did."""
    head: str = ""
    """The checkpoint that it was last saved in or taken back to."""


class Keeper:
    """Looks after the kernels of one server. All methods belong to the server's event loop."""

    def __init__(
        self,
        manager: AsyncMappingKernelManager,
        sessions: SessionManager,
        store: Store,
        log: Logger,
        told: Callable[[str, str], None] = lambda kernel_id, what: None,
    ) -> None:
        """Become the keeper of a kernel manager.

        Args:
            manager: the server's.
            sessions: the server's.
            store: where snapshots go; the records lie beside them.
            log: the server's.
            told: called with a kernel's id and what became of it.
        """
        self.manager, self.sessions, self.store, self.log = manager, sessions, store, log
        self.records = Records(Path(store.path) / "jupyter")
        self._told = told
        self._states: dict[str, State] = {}
        self._returning: dict[str, Returning] = {}
        self._engine = ThreadPoolExecutor(1, "torpor-engine")
        self._server = ProcessId.of(os.getpid())
        setattr(manager, KEEPER, self)

    # ------------------------------------------------------------------------------------ for the provisioner

    def returning(self, kernel_id: str) -> Returning | None:
        """Whether the kernel that is about to be started comes back instead."""
        return self._returning.pop(kernel_id, None)

    def log_file(self, kernel_id: str) -> int:
        """A new descriptor of the file that takes what a kernel writes to its standard output and error."""
        folder = self.records.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(folder / f"{kernel_id}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def remember(self, provisioner: TorporProvisioner) -> None:
        """Write down a living kernel. Trouble with the store is told in the log: the kernel works without."""
        try:
            self.records.write(self._record(provisioner))
        except TorporError as error:
            self.log.warning(
                "Kernel %s would not be found again after a crash of the server: %s", provisioner.kernel_id, error
            )

    def forget(self, kernel_id: str) -> None:
        """A kernel has ended for good; its checkpoints stay."""
        self._states.pop(kernel_id, None)
        self.records.remove(KernelRecord, kernel_id)
        self._tidy(kernel_id)

    def _tidy(self, kernel_id: str) -> None:
        """Remove the log of a kernel that is gone, once no checkpoint has it open any more."""
        checkpoints = self.records.all(CheckpointRecord)
        if any(isinstance(record, TorporError) or record.kernel_id == kernel_id for record in checkpoints):
            return
        with suppress(FileNotFoundError):
            (self.records.folder / "logs" / f"{kernel_id}.log").unlink()

    # ------------------------------------------------------------------------------------------ what there is

    def gate(self, kernel_id: str) -> Gate:
        """A kernel's gate."""
        return self.state(kernel_id).gate

    def state(self, kernel_id: str) -> State:
        """What is remembered of a kernel."""
        return self._states.setdefault(kernel_id, State())

    def describe(self, kernel_id: str) -> dict[str, Any]:
        """A kernel for the REST API. Raises NotFound."""
        provisioner = self._provisioner(kernel_id)
        state = self.state(kernel_id)
        operation = state.operation
        kernel = self._manager(kernel_id)
        sessions = self._sessions(kernel_id)
        return {
            "id": kernel_id,
            "name": kernel.kernel_name,
            "state": "parked" if state.parked else "living",
            "execution_state": state.execution_state if state.parked else kernel.execution_state,
            "snapshot": state.parked or None,
            "parked_ns": state.parked_ns or None,
            "head": state.head or None,
            "execution_count": state.gate.execution_count,
            "pid": provisioner.pid if isinstance(provisioner, TorporProvisioner) else None,
            "suitable": isinstance(provisioner, TorporProvisioner),
            "sessions": [{"id": s.id, "path": self._relative(s.path), "type": s.type} for s in sessions],
            "operation": asdict(operation) if operation else None,
        }

    def kernels(self) -> list[dict[str, Any]]:
        """All kernels of the server."""
        return [self.describe(kernel_id) for kernel_id in self.manager.list_kernel_ids()]

    async def checkpoints(self, kernel_id: str | None = None) -> list[dict[str, Any]]:
        """The checkpoints of one kernel, living or gone, or of all; oldest first. Raises StoreError."""
        infos = await self._run(self.store.snapshots)
        return [self._checkpoint(info) for info in infos if TAG in info.tags and kernel_id in (None, info.tags[TAG])]

    async def checkpoint_of(self, kernel_id: str, id: str) -> tuple[SnapshotInfo, CheckpointRecord]:
        """One checkpoint of a kernel. Raises NotFound, StoreError."""
        record = self.records.read(CheckpointRecord, id)
        info = await self._run(self.store.resolve, id)
        if info.id != id or info.tags.get(TAG) != kernel_id or record.kernel_id != kernel_id:
            raise NotFound(f"kernel {kernel_id} has no checkpoint {id}")
        return info, record

    def _checkpoint(self, info: SnapshotInfo) -> dict[str, Any]:
        try:
            record = self.records.read(CheckpointRecord, info.id)
        except TorporError as error:
            record = CheckpointRecord(info.id, info.tags[TAG], "", {}, "", name=info.tags.get("name", ""))
            damage = info.damage or str(error)
        else:
            damage = info.damage
        return {
            "id": info.id,
            "kernel_id": record.kernel_id,
            "kernel_name": record.kernel_name,
            "name": record.name,
            "note": record.note,
            "pinned": record.pinned,
            "automatic": record.automatic,
            "parent": record.parent or None,
            "path": self._relative(record.notebook),
            "cell": record.cell,
            "execution_count": record.execution_count,
            "execution_state": record.execution_state,
            "created_ns": info.created_ns,
            "host": info.host,
            "size": info.size,
            "written": info.written,
            "damage": damage,
        }

    # ------------------------------------------------------------------------------------------ what can be done

    async def save(self, kernel_id: str, *, name: str = "", note: str = "", automatic: bool = False) -> dict[str, Any]:
        """Keep a living kernel as a checkpoint; it runs on.

        Raises:
            NotFound, Unsuitable: no such kernel; it is parked, or was not started by Torpor.
            TorporError: as `torpor.checkpoint`; the kernel runs on.
        """
        async with self._operation(kernel_id, "saving") as operation:
            with self.gate(kernel_id).hold():
                info = await self._save(kernel_id, operation, "run", name=name, note=note, automatic=automatic)
        self._told(kernel_id, "saved")
        return self._checkpoint(info)

    async def park(self, kernel_id: str, *, name: str = "", automatic: bool = False) -> dict[str, Any]:
        """Keep a living kernel as a checkpoint and end its process; for its notebook it waits. Raises as `save`."""
        async with self._operation(kernel_id, "parking") as operation:
            await self._park(kernel_id, operation, name=name or "parked", automatic=automatic)
        self._told(kernel_id, "parked")
        return self.describe(kernel_id)

    async def resume(self, kernel_id: str) -> dict[str, Any]:
        """Wake a parked kernel: it goes on where it was, and gets the requests that waited for it.

        Raises:
            NotFound, Unsuitable: no such kernel; it is not parked.
            TorporError: as `torpor.restore`; it stays parked.
        """
        state = self.state(kernel_id)
        self._provisioner(kernel_id)
        if not state.parked:
            raise Unsuitable(f"kernel {kernel_id} is not parked")
        async with self._operation(kernel_id, "waking") as operation:
            with self.records.claimed(kernel_id) as claimed:
                info, record = await self.checkpoint_of(kernel_id, claimed.snapshot)
                await self._wake(kernel_id, operation, info, record)
        self._told(kernel_id, "woken")
        return self.describe(kernel_id)

    async def restore(self, kernel_id: str, id: str, *, discard: bool = False) -> dict[str, Any]:
        """Take a kernel back to a checkpoint, in place; what it is now is kept as a checkpoint before.

        A kernel that is no longer there comes back under its id.

        Args:
            kernel_id: the kernel.
            id: one of its checkpoints.
            discard: do not keep what it is now; for a kernel that cannot be kept as it is.

        Raises:
            NotFound: no such checkpoint.
            TorporError: as `torpor.checkpoint` and `torpor.restore`; the kernel is as before, or parked.
        """
        info, record = await self.checkpoint_of(kernel_id, id)
        if kernel_id not in self.manager:
            await self._register(self._as_parked(record))
        before: SnapshotInfo | None = None
        async with self._operation(kernel_id, "restoring") as operation:
            state, provisioner = self.state(kernel_id), self._suitable(kernel_id)
            if state.parked:
                await self._wake(kernel_id, operation, info, record)
            elif discard or provisioner.kernel is None or provisioner.kernel.poll() is not None:
                await self._discard(kernel_id, provisioner, record)
                await self._wake(kernel_id, operation, info, record)
            else:
                name = f"before going back to {record.name or info.short}"
                before = await self._park(kernel_id, operation, name=name, automatic=True)
                try:
                    await self._wake(kernel_id, operation, info, record)
                except TorporError:
                    kept = self.records.read(CheckpointRecord, before.id)
                    await self._wake(kernel_id, operation, before, kept)
                    raise
            self.gate(kernel_id).execution_count = record.execution_count
        self._told(kernel_id, "restored")
        return self.describe(kernel_id) | {"undo": before.id if before else None}

    async def change(self, kernel_id: str, id: str, **changes: Any) -> dict[str, Any]:
        """Change the name, note or pin of a checkpoint. Raises NotFound, StoreError."""
        info, record = await self.checkpoint_of(kernel_id, id)
        for what, value in changes.items():
            setattr(record, what, value)
        self.records.write(record)
        self._told(kernel_id, "changed")
        return self._checkpoint(info)

    async def delete(self, kernel_id: str, id: str) -> int:
        """Delete a checkpoint; the bytes that are free now. Raises NotFound, Unsuitable, StoreError."""
        _, record = await self.checkpoint_of(kernel_id, id)
        with suppress(NotFound):
            if self.records.read(KernelRecord, kernel_id).snapshot == id:
                raise Unsuitable("the kernel is parked in this checkpoint", advice="wake it, or shut it down, first")
        if record.pinned:
            raise Unsuitable("the checkpoint is pinned", advice="unpin it first")
        report = await self._run(self.store.remove, id)
        self.records.remove(CheckpointRecord, id)
        if kernel_id not in self.manager:
            self._tidy(kernel_id)
        self._told(kernel_id, "deleted")
        return report.freed

    # ------------------------------------------------------------------------------------------ steps

    async def _save(
        self, kernel_id: str, operation: Operation, then: str, *, name: str, note: str = "", automatic: bool
    ) -> SnapshotInfo:
        """Make a checkpoint, the gate being shut."""
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        process = provisioner.kernel
        if process is None or process.poll() is not None:
            raise Unsuitable(f"kernel {kernel_id} is not running")
        manager = self._manager(kernel_id)
        sessions = self._sessions(kernel_id)
        notebook = sessions[0].path if sessions else ""
        tags = {TAG: kernel_id, "notebook": notebook[-TEXT:], "name": name[:TEXT]}
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
        )
        info = await self._run(save)
        record = CheckpointRecord(
            info.id,
            kernel_id,
            manager.kernel_name,
            _json_connection(manager.get_connection_info()),
            str(provisioner.cwd),
            name=name,
            note=note,
            automatic=automatic,
            parent=state.head,
            notebook=notebook,
            cell=state.gate.cell,
            execution_count=state.gate.execution_count,
            execution_state=manager.execution_state or "idle",
            outstanding=list(state.gate.unanswered),
            kernel_info=_kernel_info(manager),
        )
        state.head = info.id
        self.records.write(record)
        return info

    async def _park(self, kernel_id: str, operation: Operation, *, name: str, automatic: bool) -> SnapshotInfo:
        """Save and end; the gate is shut until it is woken."""
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        if state.parked:
            raise Unsuitable(f"kernel {kernel_id} is parked already")
        state.gate.shut += 1
        provisioner.parked = True  # its process is about to end, and that is no reason to restart it
        try:
            info = await self._save(kernel_id, operation, "kill", name=name, automatic=automatic)
        except BaseException:
            provisioner.parked = False
            state.gate.open()
            raise
        provisioner.park()
        manager = self._manager(kernel_id)
        state.execution_state = manager.execution_state or "idle"
        manager.execution_state = "busy"  # jupyter_server sends no "nudge" to a busy kernel, and waits for it
        state.gate.kernel_info = _kernel_info(manager)
        state.parked, state.parked_ns = info.id, time.time_ns()
        self.records.write(self._record(provisioner))
        return info

    async def _wake(self, kernel_id: str, operation: Operation, info: SnapshotInfo, record: CheckpointRecord) -> None:
        """Give a parked kernel a process again, from any of its checkpoints, and open the gate."""
        operation.done = operation.total = 0
        provisioner, state = self._suitable(kernel_id), self.state(kernel_id)
        manager = self._manager(kernel_id)
        moved = _json_connection(manager.get_connection_info()) != record.connection
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
        )
        job = await self._run(wake)
        try:
            provisioner.adopt(KernelProcess(tree_root(job), job=job))
        except ProcessLookupError:
            raise RestoreFailed("the kernel ended as soon as it was woken", advice="see its log") from None
        state.gate.abort_unanswered(set(record.outstanding))
        manager.execution_state = record.execution_state
        state.parked, state.parked_ns, state.head = "", 0, info.id
        state.gate.kernel_info = None
        self.remember(provisioner)
        for warning in job.warnings:
            self.log.warning("Kernel %s was woken: %s", kernel_id, warning)
        state.gate.open()

    async def _discard(self, kernel_id: str, provisioner: TorporProvisioner, record: CheckpointRecord) -> None:
        """End a kernel without keeping it, and let its manager wait for another."""
        state = self.state(kernel_id)
        state.gate.shut += 1
        provisioner.parked = True
        if provisioner.kernel:
            provisioner.kernel.kill()
            while provisioner.kernel.poll() is None:
                await asyncio.sleep(0.01)
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
        channels = [channel for connection in self._websockets(kernel_id) for channel in connection.channels]
        buffer = self.manager._kernel_buffers.get(kernel_id)
        channels += list(buffer["channels"]) if buffer else []
        channels += ["iopub"] if getattr(manager, "_activity_stream", None) else []
        channels += ["control"] if manager._control_socket else []
        return Counter(getattr(manager, f"{channel}_port") for channel in channels)

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

    async def _run(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._engine, call, *arguments)

    # ------------------------------------------------------------------------------------------ over a restart

    async def adopt_all(self) -> None:
        """Find the kernels that earlier servers have left, living or parked, and register them with their sessions."""
        for record in list(self.records.all(KernelRecord)):
            if isinstance(record, TorporError):
                self.log.warning("%s", record)
            elif record.id not in self.manager and self._is_ours(record):
                try:
                    await self._register(record)
                except Exception as error:  # a kernelspec that is gone, ports in use: the others still come back
                    self.log.warning("Kernel %s cannot come back: %s", record.id, error)

    def _is_ours(self, record: KernelRecord) -> bool:
        if record.server and record.server != self._server and record.server.exists():
            return False
        if not record.parked and not (record.process and record.process.exists()):
            if not record.process or record.process.boot_id == self._server.boot_id:
                self.records.remove(KernelRecord, record.id)  # it ended after its server did
            return False
        places = [session.path for session in record.sessions]
        if not places:
            return record.root_dir == self.manager.root_dir
        return any(_below(path, self.manager.root_dir) for path in places)

    async def _register(self, record: KernelRecord) -> None:
        """Make a kernel that comes back one of the server's."""
        process = KernelProcess.left(record.process, record.keeper) if record.process and not record.parked else None
        state = self.state(record.id)
        if record.parked:
            state.parked, state.parked_ns = record.snapshot, record.parked_ns
            state.execution_state, state.head = record.execution_state, record.snapshot
            state.gate.shut, state.gate.kernel_info = 1, record.kernel_info
        self._returning[record.id] = Returning(record.connection, process)
        paths = [self._relative(session.path) for session in record.sessions]
        try:
            await self.manager.start_kernel(
                kernel_id=record.id,
                kernel_name=record.kernel_name,
                cwd=record.cwd,
                env={**os.environ, **({"JPY_SESSION_NAME": record.sessions[0].path} if record.sessions else {})},
            )
        except BaseException:
            self._returning.pop(record.id, None)
            self._states.pop(record.id, None)
            raise
        kernel = self._manager(record.id)
        kernel.execution_state = "busy" if record.parked else record.execution_state
        for session, path in zip(record.sessions, paths, strict=True):
            if path is not None:
                await self.sessions.save_session(
                    session.id, path=path, name=session.name, type=session.type, kernel_id=record.id
                )
        if process:
            self.remember(self._suitable(record.id))
        self.log.info("Kernel %s is back, %s", record.id, "parked" if record.parked else "alive")

    def _as_parked(self, record: CheckpointRecord) -> KernelRecord:
        """A kernel that is gone, as if it had been parked in a checkpoint of its own."""
        return KernelRecord(
            record.kernel_id,
            record.kernel_name,
            record.connection,
            record.cwd,
            self.manager.root_dir,
            snapshot=record.id,
            execution_state=record.execution_state,
            kernel_info=record.kernel_info,
            parked_ns=time.time_ns(),
        )

    async def leave(self) -> None:
        """The server stops: park what lives; what cannot be parked is left to Jupyter, which ends it."""
        for kernel_id in self.manager.list_kernel_ids():
            state = self.state(kernel_id)
            if not state.parked:
                try:
                    await self.park(kernel_id, name="at server stop", automatic=True)
                except TorporError as error:
                    self.log.warning("Kernel %s cannot be kept, and ends: %s", kernel_id, error)
                    continue
            self._let_go(kernel_id)

    def leave_parked(self) -> None:
        """The server stops, and ends what lives: only what is parked stays."""
        for kernel_id in self.manager.list_kernel_ids():
            if self.state(kernel_id).parked:
                self._let_go(kernel_id)

    def _let_go(self, kernel_id: str) -> None:
        """Forget a kernel without shutting it down: it is parked, or another server's now."""
        kernel = self._manager(kernel_id)
        kernel.stop_restarter()
        self.manager.stop_watching_activity(kernel_id)
        kernel.cleanup_connection_file()
        self.manager.remove_kernel(kernel_id)
        self._states.pop(kernel_id, None)

    def note_sessions(self) -> None:
        """Write down which notebooks use which kernels, where that has changed; let go what another server woke."""
        for kernel_id in self.manager.list_kernel_ids():
            provisioner, state = self._provisioner(kernel_id), self.state(kernel_id)
            if not isinstance(provisioner, TorporProvisioner) or state.operation:
                continue
            try:
                record = self.records.read(KernelRecord, kernel_id)
            except TorporError:
                continue
            if state.parked and not record.parked:
                self.log.info("Kernel %s was woken by another server", kernel_id)
                self._let_go(kernel_id)
            elif record.sessions != (found := self._sessions(kernel_id)) and (found or not state.parked):
                record.sessions = found
                try:
                    self.records.write(record)
                except TorporError as error:
                    self.log.warning("%s", error)

    def close(self) -> None:
        """Give up the engine's thread."""
        self._engine.shutdown()

    # ------------------------------------------------------------------------------------------ small things

    def _provisioner(self, kernel_id: str) -> Any:
        if kernel_id not in self.manager:
            raise NotFound(f"there is no kernel {kernel_id}")
        return self._manager(kernel_id).provisioner

    def _manager(self, kernel_id: str) -> Any:
        """A kernel's own manager, with the attributes that jupyter_server adds (execution_state, _activity_stream)."""
        return self.manager.get_kernel(kernel_id)

    def _suitable(self, kernel_id: str) -> TorporProvisioner:
        provisioner = self._provisioner(kernel_id)
        if not isinstance(provisioner, TorporProvisioner):
            raise Unsuitable(
                "the kernel was not started by Torpor", advice="its kernelspec names a provisioner of its own"
            )
        return provisioner

    def _sessions(self, kernel_id: str) -> list[SessionRecord]:
        rows = self.sessions.cursor.execute("SELECT * FROM session WHERE kernel_id=?", (kernel_id,)).fetchall()
        root = self.manager.root_dir
        return [
            SessionRecord(row["session_id"], os.path.join(root, row["path"]), row["name"] or "", row["type"])
            for row in rows
        ]

    def _relative(self, path: str) -> str | None:
        """A path as the contents API has it; None when it is not below this server's root."""
        return os.path.relpath(path, self.manager.root_dir) if _below(path, self.manager.root_dir) else None

    def _record(self, provisioner: TorporProvisioner) -> KernelRecord:
        kernel_id, process = provisioner.kernel_id, provisioner.kernel
        manager: Any = provisioner.parent
        state = self.state(kernel_id)
        return KernelRecord(
            kernel_id,
            manager.kernel_name,
            _json_connection(manager.get_connection_info()),
            str(provisioner.cwd),
            self.manager.root_dir,
            sessions=self._sessions(kernel_id),
            server=self._server,
            process=process.id if process else None,
            keeper=process.keeper if process else None,
            snapshot=state.parked,
            execution_state=state.execution_state
            if state.parked
            else getattr(manager, "execution_state", None) or "idle",
            kernel_info=_kernel_info(manager),
            parked_ns=state.parked_ns,
        )


def _kernel_info(manager: Any) -> dict[str, Any]:
    """What a kernel said of itself when the first browser connected; empty when none has."""
    known = getattr(manager, "_kernel_info_future", None)
    info: dict[str, Any] = known.result() if known and known.done() else {}
    return info


def _json_connection(info: Any) -> dict[str, Any]:
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in info.items()}


def _below(path: str, root: str) -> bool:
    return bool(path) and os.path.commonpath([os.path.abspath(path), os.path.abspath(root)]) == os.path.abspath(root)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)

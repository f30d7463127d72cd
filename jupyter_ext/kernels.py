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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

import torpor
from torpor.errors import NotFound, Refused, RestoreFailed, TorporError
from torpor.jupyter_ext.process import KernelProcess, tree_root
from torpor.jupyter_ext.provisioner import TorporProvisioner
from torpor.jupyter_ext.records import CheckpointRecord, KernelRecord
from torpor.jupyter_ext.roll import Roll, json_connection, kernel_info_of
from torpor.jupyter_ext.state import Operation, Unsuitable
from torpor.jupyter_ext.traffic import Traffic, is_io_thread
from torpor.remote.freeze import LastToStop
from torpor.store import SnapshotInfo

T = TypeVar("T")
JOURNAL = "-journal"
"""In the name of SQLite's rollback journals."""
JOURNAL_SECONDS = 1.0
"""How long a transaction is waited for; a longer one is a program's own, and is saved as it is."""
JOURNAL_TRIES = 4
REPLY_SECONDS = 5.0
"""How long a kernel that was idle may take for its first answer."""
TAG = "jupyter-kernel"
"""The tag of a snapshot that says whose checkpoint it is."""
TEXT = 1000
"""Characters of a tag's value that are kept; the store takes 1024."""


class Keeper(Roll):
    """Looks after the kernels of one server. All methods belong to the server's event loop."""

    def __init__(self, *arguments: Any) -> None:
        """As Roll. One thread for all kernels: two checkpoints at once would only compete for the disk."""
        super().__init__(*arguments)
        self._engine = ThreadPoolExecutor(1, "torpor-engine")
        self._unwritten: dict[str, CheckpointRecord] = {}
        """Of checkpoints that are in the store, but there was no room to write down what is known of them."""

    # ------------------------------------------------------------------------------------------ what there is

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
        record = self._unwritten.get(id) or self.records.read(CheckpointRecord, id)
        info = await self._run(self.store.resolve, id)
        if info.id != id or info.tags.get(TAG) != kernel_id or record.kernel_id != kernel_id:
            raise NotFound(f"kernel {kernel_id} has no checkpoint {id}")
        return info, record

    def _checkpoint(self, info: SnapshotInfo) -> dict[str, Any]:
        try:
            record = self._unwritten.get(info.id) or self.records.read(CheckpointRecord, info.id)
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
            with self._claimed(kernel_id) as snapshot:
                info, record = await self.checkpoint_of(kernel_id, snapshot)
                await self._wake(kernel_id, operation, info, record, again=False)
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
                await self._wake(kernel_id, operation, info, record, again=True)
            elif discard or provisioner.kernel is None or provisioner.kernel.poll() is not None:
                await self._discard(kernel_id, provisioner, record)
                await self._wake(kernel_id, operation, info, record, again=True)
            else:
                name = f"before going back to {record.name or info.short}"
                before = await self._park(kernel_id, operation, name=name, automatic=True)
                try:
                    await self._wake(kernel_id, operation, info, record, again=True)
                except TorporError:
                    _, kept = await self.checkpoint_of(kernel_id, before.id)
                    await self._wake(kernel_id, operation, before, kept, again=False)
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
        self._unwritten.pop(id, None)
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
        info: SnapshotInfo = await self._run(_between_transactions, process.pid, save)
        record = CheckpointRecord(
            info.id,
            kernel_id,
            manager.kernel_name,
            json_connection(manager.get_connection_info()),
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
            kernel_info=kernel_info_of(manager),
        )
        state.head = info.id
        try:
            self.records.write(record)
        except TorporError as error:  # the kernel is safe, and may have ended: that is no reason to fail
            self._unwritten[info.id] = record
            self.log.error("Checkpoint %s has no name until there is room: %s", info.id, error)
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
        state.gate.kernel_info = kernel_info_of(manager)
        state.parked, state.parked_ns = info.id, time.time_ns()
        self.remember(provisioner)
        return info

    async def _wake(
        self, kernel_id: str, operation: Operation, info: SnapshotInfo, record: CheckpointRecord, *, again: bool
    ) -> None:
        """Give a parked kernel a process again, from any of its checkpoints, and open the gate.

        Args:
            kernel_id: the kernel.
            operation: told the progress.
            info: the snapshot.
            record: what is known of it.
            again: it may have gone on from there already.
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
        if again:
            await self._new_history(manager, record)
        self.remember(provisioner)
        for warning in job.warnings:
            self.log.warning("Kernel %s was woken: %s", kernel_id, warning)
        state.gate.open()

    async def _new_history(self, manager: Any, record: CheckpointRecord) -> None:
        """Let IPython begin a new session in its database of cells.

        The database did not go back with the kernel: the next cell's number is there already, and IPython would say so
        in the middle of that cell's output.
        """
        if record.kernel_info.get("implementation") != "ipython":
            return
        replied = asyncio.Event()
        shell = manager.connect_shell()
        try:
            shell.on_recv(lambda _: replied.set())
            code = "get_ipython().history_manager.new_session()"
            manager.session.send(shell, "execute_request", {"code": code, "silent": True, "store_history": False})
            if record.execution_state == "idle":  # a busy one takes it up when its cell is done
                await asyncio.wait_for(replied.wait(), REPLY_SECONDS)
        except asyncio.TimeoutError:  # until Python 3.10 another one than the built-in
            self.log.warning("Kernel %s does not answer yet", record.kernel_id)
        finally:
            shell.close()

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

    async def leave(self) -> None:
        """The server stops: park what lives; what cannot be parked is left to Jupyter, which ends it."""
        for kernel_id in self.manager.list_kernel_ids():
            state = self.state(kernel_id)
            while state.operation:
                await asyncio.sleep(0.02)
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

    def close(self) -> None:
        """Give up the engine's thread."""
        self._engine.shutdown()


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

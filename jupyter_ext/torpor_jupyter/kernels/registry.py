"""The kernels of a server and their state: kept in memory, recorded in the store, and found by the next server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from logging import Logger
from pathlib import Path
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager

from torpor import processes
from torpor.errors import NotFound, TorporError
from torpor.store import Store
from torpor_jupyter.data.attachments import Attachments
from torpor_jupyter.data.records import TITLES, CheckpointRecord, KernelRecord, ProcessId, Records, SessionRecord
from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.provisioner import Returning, TorporProvisioner
from torpor_jupyter.kernels.quiescing import listening_process
from torpor_jupyter.kernels.recorder import note_path
from torpor_jupyter.kernels.state import State, Unsuitable
from torpor_jupyter.kernels.transcript import Transcript

TAG = "jupyter-kernel"
"""The tag of a snapshot that has the id of its kernel."""
PARKED = "jupyter-parked"
"""The tag of a snapshot whose kernel was parked: its process was ended."""


class Registry:
    """The kernels of one server. All methods belong to the server's event loop."""

    def __init__(self, manager: AsyncMappingKernelManager, sessions: SessionManager, store: Store, log: Logger) -> None:
        """Begin without kernels.

        Args:
            manager: the server's kernel manager.
            sessions: the server's session manager.
            store: the store for snapshots; the records are kept beside them.
            log: the server's log.
        """
        self.manager, self.sessions, self.store, self.log = manager, sessions, store, log
        self.records = Records(Path(store.path) / "jupyter")
        self.cells = Attachments(self.records.folder / "cells", ".json", "what cells have said")
        self._states: dict[str, State] = {}
        self._returning: dict[str, Returning] = {}
        self.server = ProcessId.of(os.getpid())
        self.parks_at_stop = True
        """Whether a stop of the server parks the living kernels."""
        self.leaves_unsaved = True
        """Whether a kernel that cannot be parked then lives on without the server."""

    # ------------------------------------------------------------------------------------ for the provisioner

    def returning(self, kernel_id: str) -> Returning | None:
        """How a kernel comes back that Jupyter is about to start; None if it really has to be started."""
        return self._returning.pop(kernel_id, None)

    def log_file(self, kernel_id: str) -> int:
        """Open the file for a kernel's standard output and error; return a new descriptor.

        If the store cannot be written, log that, and return a descriptor of /dev/null.
        """
        path = self.log_path(kernel_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.log.warning(
                "Torpor's store cannot be written, and no kernel can be saved: %s; make room, or name another one by"
                " c.TorporApp.store",
                error,
            )
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def log_path(self, kernel_id: str) -> Path:
        """The path of the file of `log_file`."""
        return self.records.folder / "logs" / f"{kernel_id}.log"

    def note_path(self, kernel_id: str) -> Path:
        """The path of what is noted of a living kernel: see `torpor_jupyter.kernels.notes`."""
        return note_path(self.records.folder, kernel_id)

    def remember(self, provisioner: TorporProvisioner) -> None:
        """Record a living kernel in the store. An error is only logged: the kernel works without a record."""
        try:
            self.records.write(self._record(provisioner))
        except TorporError as error:
            self.log.warning(
                "Another server would not find kernel %s after a crash of this one: %s", provisioner.kernel_id, error
            )

    async def settled(self, kernel_id: str) -> None:
        """Before a kernel is ended: cancel the operation on it, wait until that is over, and hold its gate shut.

        The old process must not get the requests that wait.
        """
        state = self._states.get(kernel_id)
        if state and not state.ending:
            state.ending = True
            state.gate.close()
        while state and state.operation and state.operation.doing != "forking":  # that does not touch it
            state.operation.cancelled = True
            await asyncio.sleep(0.02)

    def begin_anew(self, kernel_id: str) -> None:
        """Handle a restart: the kernel has a new process, with nothing of the old one in it."""
        if (old := self._states.pop(kernel_id, None)) is None:
            return
        old.series.close()
        self._states[kernel_id] = State(gate=old.gate, log=old.log)
        old.gate.begin_anew()
        if old.parked:
            self.unpin(old.parked)
            self.kernel_manager(kernel_id).execution_state = "starting"  # it was told to be busy, so that pages wait
            old.gate.open()
        if old.ending:
            old.gate.open()

    async def forget(self, kernel_id: str) -> None:
        """Forget a kernel that has ended for good. Its checkpoints stay."""
        state = self._states.pop(kernel_id, None)
        if state and state.parked:
            self.unpin(state.parked)
        try:
            self.records.remove(KernelRecord, kernel_id)
            self.note_path(kernel_id).unlink(missing_ok=True)
            await asyncio.to_thread(self.remove_unused_log, kernel_id)
        except (OSError, TorporError) as error:
            self.log.warning("Kernel %s has ended, and the store still has its record: %s", kernel_id, error)

    def pin(self, id: str, pinned: bool) -> None:
        """Protect the snapshot of a parked kernel from `torpor prune`, or stop that. An error is only logged."""
        try:
            self.store.pin(id, pinned)
        except TorporError as error:
            self.log.warning("%s", error)

    def unpin(self, id: str) -> None:
        """Unpin a checkpoint in which no kernel is parked any more, unless a user has pinned it."""
        try:
            pinned = self.records.read(CheckpointRecord, id).pinned
        except TorporError:
            pinned = False
        if not pinned:
            self.pin(id, False)

    def remove_unused_log(self, kernel_id: str) -> None:
        """Remove the log of a kernel that is gone, unless a checkpoint or another kernel still has it open."""
        for record in (*self.records.all(CheckpointRecord), *self.records.all(KernelRecord)):
            if isinstance(record, TorporError) or kernel_id in (record.log, getattr(record, "kernel_id", record.id)):
                return
        with suppress(FileNotFoundError):
            self.log_path(kernel_id).unlink()

    # ------------------------------------------------------------------------------------------ what there is

    def describe(self, kernel_id: str) -> dict[str, Any]:
        """A kernel for the REST API. Raises NotFound."""
        provisioner = self.provisioner(kernel_id)
        state = self.state(kernel_id)
        operation = state.operation
        # During an operation report the state before it: a kernel that is reported as parked can be woken at once.
        condition = state.condition if operation else self.condition(kernel_id)
        return condition | {
            "id": kernel_id,
            "name": self.kernel_manager(kernel_id).kernel_name,
            "head": state.head or None,
            "execution_count": state.gate.execution_count,
            "suitable": isinstance(provisioner, TorporProvisioner) or can_be_taken_over(provisioner),
            "unsaved": state.unsaved,
            "at_stop": self._at_stop(provisioner, state),
            "sessions": [
                {"id": s.id, "path": self.contents_path(s.path), "type": s.type} for s in self.sessions_of(kernel_id)
            ],
            "operation": asdict(operation) if operation else None,
        }

    def condition(self, kernel_id: str) -> dict[str, Any]:
        """The fields of `describe` that an operation changes. Raises NotFound."""
        provisioner, state = self.provisioner(kernel_id), self.state(kernel_id)
        return {
            "state": "parked" if state.parked else "living",
            "execution_state": state.execution_state
            if state.parked
            else self.kernel_manager(kernel_id).execution_state,
            "snapshot": state.parked or None,
            "parked_ns": state.parked_ns or None,
            "pid": (pid := provisioner.pid if isinstance(provisioner, TorporProvisioner) else None),
            "memory": processes.resident(pid) if pid else 0,
        }

    def _at_stop(self, provisioner: Any, state: State) -> str:
        """What a stop of the server would do to a kernel, as far as is known: "parked", "living" or "ended"."""
        if state.parked or (self.parks_at_stop and not state.unsaved and isinstance(provisioner, TorporProvisioner)):
            return "parked"
        leaves = self.parks_at_stop and self.leaves_unsaved
        return "living" if leaves and isinstance(provisioner, TorporProvisioner) and provisioner.lives_on else "ended"

    def kernels(self) -> list[dict[str, Any]]:
        """All kernels of the server."""
        return [self.describe(kernel_id) for kernel_id in self.manager.list_kernel_ids()]

    def is_idle(self, kernel_id: str) -> bool:
        """Whether a kernel is idle: it says so, and no connected browser waits for its answer."""
        gate = self.gate(kernel_id)
        if self.kernel_manager(kernel_id).execution_state != "idle":
            return False
        gate.forget_gone()
        return not gate.unanswered

    def gate(self, kernel_id: str) -> Gate:
        """A kernel's gate."""
        return self.state(kernel_id).gate

    def state(self, kernel_id: str) -> State:
        """The state of a kernel."""
        return self._states.setdefault(kernel_id, State())

    # ------------------------------------------------------------------------------------------ over a restart

    async def adopt_all(self) -> None:
        """Find the kernels that earlier servers have left, living or parked, and register them with their sessions."""
        for record in await asyncio.to_thread(self._left):
            if record.id not in self.manager:
                try:
                    if self._belongs_here(record):
                        await self.register(record)
                except Exception as error:  # its kernelspec is gone, or a port is in use: go on with the others
                    self.log.warning("Kernel %s cannot come back: %s", record.id, error)

    def _left(self) -> list[KernelRecord]:
        """The records of the kernels of all servers, corrected."""
        left = []
        for found in self.records.all(KernelRecord):
            if isinstance(found, TorporError):
                self.log.warning("%s", found)
                continue
            try:
                left.append(self._reconciled(found))
            except TorporError as error:
                self.log.warning("Kernel %s: %s", found.id, error)
        return left

    def _reconciled(self, record: KernelRecord) -> KernelRecord:
        """Correct the record of a kernel whose server was killed after it had parked or woken it, and before it could
        record that."""
        gone = not (record.server and record.server.exists())
        if record.parked and gone and (pid := listening_process(record.connection)) is not None:
            self.log.info("Kernel %s was woken, and lives as process %d", record.id, pid)
            self.unpin(record.snapshot)
            living = replace(record, snapshot="", head=record.snapshot, process=ProcessId.of(pid))
            self.records.write(living)
            return living
        if record.parked or not gone or not record.process or not record.process.is_here() or record.process.exists():
            return record
        for info in reversed(self.store.snapshots()):
            mine = info.tags.get(TAG) == record.id and PARKED in info.tags and not info.damage
            if mine and info.created_ns > record.written_ns:
                self.log.info("Kernel %s was parked in %s", record.id, info.id)
                notebook = record.sessions[0].path if record.sessions else ""
                checkpoint = CheckpointRecord(
                    info.id, record.id, record.kernel_name, record.connection, record.cwd,
                    name=TITLES["parked"], reason="parked", parent=record.head, notebook=notebook,
                    execution_state=record.execution_state, kernel_info=record.kernel_info, log=record.log,
                )  # fmt: skip
                with suppress(NotFound):
                    checkpoint = self.records.read(CheckpointRecord, info.id)
                self.records.write(checkpoint)
                self.pin(info.id, True)
                parked = replace(record, snapshot=info.id, process=None, parked_ns=info.created_ns)
                self.records.write(parked)
                return parked
        return record

    def _belongs_here(self, record: KernelRecord) -> bool:
        if record.server and record.server != self.server and record.server.exists():
            return False
        if not record.parked and not (record.process and record.process.exists()):
            if not record.process or record.process.is_here():
                self.records.remove(KernelRecord, record.id)  # it ended after its server did
                self.note_path(record.id).unlink(missing_ok=True)
            return False
        places = [session.path for session in record.sessions]
        if not places:
            return record.root_dir == self.manager.root_dir
        return any(_below(path, self.manager.root_dir) for path in places)

    async def register(self, record: KernelRecord, process: KernelProcess | None = None) -> None:
        """Register a kernel that comes back with the server's managers; `process` is its process, if known."""
        if process is None and record.process and not record.parked:
            process = KernelProcess.adopt(record.process)
        state = self.state(record.id)
        state.log = record.log
        state.head = record.snapshot or record.head
        if record.parked:
            state.parked, state.parked_ns = record.snapshot, record.parked_ns
            state.execution_state = record.execution_state
            state.gate.close()
            state.gate.kernel_info = record.kernel_info
        with suppress(TorporError):  # of one that ran on since, until its next cell tells
            head = self.records.read(CheckpointRecord, state.head)
            state.gate.cell, state.gate.execution_count = head.cell, head.execution_count
            if record.parked:
                state.transcript = Transcript.of(self.cells.kept(head.id))
                state.transcript.forget_running(but=head.outstanding)
        self._returning[record.id] = Returning(record.connection, process)
        paths = [self.contents_path(session.path) for session in record.sessions]
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
        kernel = self.kernel_manager(record.id)
        kernel.execution_state = "busy" if record.parked else record.execution_state
        for session, path in zip(record.sessions, paths, strict=True):
            if path is not None:
                await self.sessions.save_session(
                    session.id, path=path, name=session.name, type=session.type, kernel_id=record.id
                )
        if process:
            self.remember(self.suitable(record.id))
        self.log.info("Kernel %s is back, %s", record.id, "parked" if record.parked else "alive")

    def as_parked(self, record: CheckpointRecord) -> KernelRecord:
        """The record of a kernel that is gone, as if it had been parked in this checkpoint."""
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
            log=record.log,
        )

    @contextmanager
    def claimed(self, kernel_id: str) -> Iterator[str]:
        """Reserve a parked kernel for this server, and yield its snapshot. Raises NotFound if another was faster."""
        try:
            record = self.records.read(KernelRecord, kernel_id)
            unwritten = record.server == self.server and not record.parked
        except NotFound:
            unwritten = True
        if unwritten:  # the store had no room for the record that it is parked: no other server can know of it
            yield self.state(kernel_id).parked
            return
        with self.records.claimed(kernel_id) as claimed:
            yield claimed.snapshot

    def can_be_left(self, kernel_id: str) -> bool:
        """Whether the next server will find a kernel, parked or alive, if this one leaves it: its record is written."""
        provisioner = self.provisioner(kernel_id)
        if not isinstance(provisioner, TorporProvisioner):
            return False
        if self.state(kernel_id).parked:
            return True
        process = provisioner.kernel
        if process is None or process.poll() is not None or not provisioner.lives_on:
            return False
        self.remember(provisioner)
        try:
            return self.records.read(KernelRecord, kernel_id).process == process.id
        except TorporError:
            return False

    def release(self, kernel_id: str, *, lives: bool) -> None:
        """Forget a kernel without shutting it down: it is parked, lives on, or belongs to another server now."""
        kernel = self.kernel_manager(kernel_id)
        kernel.stop_restarter()
        self.manager.stop_watching_activity(kernel_id)
        if not lives:  # a living kernel is reached by this file, perhaps by another server
            kernel.cleanup_connection_file()
        self.manager.remove_kernel(kernel_id)
        self._states.pop(kernel_id, None)

    # ------------------------------------------------------------------------------------------ small things

    def provisioner(self, kernel_id: str) -> Any:
        """The provisioner of a kernel, which starts and ends it. Raises NotFound."""
        if kernel_id not in self.manager:
            raise NotFound(f"there is no kernel {kernel_id}")
        return self.kernel_manager(kernel_id).provisioner

    def kernel_manager(self, kernel_id: str) -> Any:
        """A kernel's own manager, with the attributes that jupyter_server adds (execution_state, _activity_stream)."""
        return self.manager.get_kernel(kernel_id)

    def suitable(self, kernel_id: str) -> TorporProvisioner:
        """The provisioner of a kernel that Torpor can save. It takes over a kernel that Jupyter itself has started.

        Raises NotFound, and Unsuitable for a kernel of another provisioner.
        """
        provisioner = self.provisioner(kernel_id)
        if can_be_taken_over(provisioner):
            provisioner = TorporProvisioner.instead_of(provisioner)
            self.remember(provisioner)
        if not isinstance(provisioner, TorporProvisioner):
            raise Unsuitable("the kernel was not started by Torpor", advice="its kernelspec names another provisioner")
        return provisioner

    def is_managed(self, kernel_id: str) -> bool:
        """Whether Torpor started the kernel, or has taken it over because a user asked for an operation on it."""
        return isinstance(self.provisioner(kernel_id), TorporProvisioner)

    def sessions_of(self, kernel_id: str) -> list[SessionRecord]:
        """The notebooks and consoles that use a kernel."""
        rows = self.sessions.cursor.execute("SELECT * FROM session WHERE kernel_id=?", (kernel_id,)).fetchall()
        root = self.manager.root_dir
        return [
            SessionRecord(row["session_id"], os.path.join(root, row["path"]), row["name"] or "", row["type"])
            for row in rows
        ]

    def contents_path(self, path: str) -> str | None:
        """A path in the form of the contents API; None if it is not below this server's root."""
        return os.path.relpath(path, self.manager.root_dir) if _below(path, self.manager.root_dir) else None

    def _record(self, provisioner: TorporProvisioner) -> KernelRecord:
        kernel_id, process = provisioner.kernel_id, provisioner.kernel
        manager: Any = provisioner.parent
        state = self.state(kernel_id)
        return KernelRecord(
            kernel_id,
            manager.kernel_name,
            json_connection(manager.get_connection_info()),
            str(provisioner.cwd),
            self.manager.root_dir,
            sessions=self.sessions_of(kernel_id),
            server=self.server,
            process=process.id if process else None,
            snapshot=state.parked,
            execution_state=state.execution_state
            if state.parked
            else getattr(manager, "execution_state", None) or "idle",
            kernel_info=kernel_info_of(manager),
            parked_ns=state.parked_ns,
            log=state.log,
            head=state.head,
            written_ns=time.time_ns(),
        )


def can_be_taken_over(provisioner: Any) -> bool:
    """Whether Jupyter itself has started a kernel, as a child of this process."""
    return type(provisioner) is LocalProvisioner and provisioner.has_process


def kernel_info_of(manager: Any) -> dict[str, Any]:
    """The kernel_info_reply from when the first browser connected; empty if none has."""
    known = getattr(manager, "_kernel_info_future", None)
    if not known or not known.done() or known.cancelled() or known.exception():
        return {}
    info: dict[str, Any] = known.result()
    return info


def tell_kernel_info(manager: Any, info: dict[str, Any]) -> None:
    """Let browsers connect with this kernel_info_reply: a kernel that is parked, or runs a cell, cannot be asked."""
    if not hasattr(manager, "_kernel_info_future"):
        known: Future[dict[str, Any]] = Future()
        known.set_result(info)
        manager._kernel_info_future = known


def json_connection(info: Any) -> dict[str, Any]:
    """The content of a connection file."""
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in info.items()}


def _below(path: str, root: str) -> bool:
    return bool(path) and os.path.commonpath([os.path.abspath(path), os.path.abspath(root)]) == os.path.abspath(root)

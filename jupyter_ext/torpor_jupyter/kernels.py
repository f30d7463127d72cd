"""The kernels of a server that Torpor looks after: saved, parked, woken, taken back to a checkpoint.

A kernel is *living* (it has a process) or *parked* (it is in a snapshot, and its manager thinks it alive). While
something is done to it, requests wait at its Gate. The engine works in a thread of its own, one kernel at a time.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from torpor import Files, client_ports
from torpor.errors import NotFound, TorporError
from torpor.store import PruneReport, SnapshotInfo
from torpor_jupyter import forks
from torpor_jupyter.memory_diff import Memory, changed, shared
from torpor_jupyter.notebooks import SUFFIX, empty
from torpor_jupyter.provisioner import TorporProvisioner
from torpor_jupyter.records import NAMES, CheckpointRecord, KernelRecord
from torpor_jupyter.roll import TAG, can_be_taken_over
from torpor_jupyter.state import Operation, Unsuitable
from torpor_jupyter.steps import Steps
from torpor_jupyter.traffic import PORTS
from torpor_jupyter.variables import Listing


class Keeper(Steps):
    """Looks after the kernels of one server. All methods belong to the server's event loop."""

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
            "suitable": isinstance(provisioner, TorporProvisioner) or can_be_taken_over(provisioner),
            "sessions": [{"id": s.id, "path": self._relative(s.path), "type": s.type} for s in sessions],
            "operation": asdict(operation) if operation else None,
        }

    def kernels(self) -> list[dict[str, Any]]:
        """All kernels of the server."""
        return [self.describe(kernel_id) for kernel_id in self.manager.list_kernel_ids()]

    async def checkpoints(self, kernel_id: str | None = None) -> list[dict[str, Any]]:
        """The checkpoints of one kernel, living or gone, or of all; oldest first. Raises StoreError."""
        infos = await self.read(self.store.snapshots)
        return [self._checkpoint(info) for info in infos if TAG in info.tags and kernel_id in (None, info.tags[TAG])]

    def _checkpoint(self, info: SnapshotInfo) -> dict[str, Any]:
        try:
            record = self._unwritten.get(info.id) or self.records.read(CheckpointRecord, info.id)
        except TorporError as error:
            record = CheckpointRecord(info.id, info.tags[TAG], "", {}, "", name=info.tags.get("name", ""))
            damage = info.damage or str(error)
        else:
            damage = info.damage
        own = {record.connection.get(port) for port in PORTS}
        return {
            "id": info.id,
            "kernel_id": record.kernel_id,
            "kernel_name": record.kernel_name,
            "name": record.name,
            "note": record.note,
            "pinned": record.pinned,
            "automatic": record.automatic,
            "reason": record.reason,
            "about": record.about or None,
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
            "has_notebook": record.has_notebook,
            # Whoever is connected to the kernel as Jupyter has it connects again.
            "notices": [notice for notice in info.notices if not (ports := client_ports(notice)) or not ports <= own],
        }

    async def diff(self, kernel_id: str, id: str, other: str = "") -> dict[str, Any]:
        """What a checkpoint has that another one has not.

        Args:
            kernel_id: the kernel.
            id: one of its checkpoints.
            other: another checkpoint of any kernel; by default the one from which it went on to this one.

        Returns:
            ``with``, the other one; ``memory`` in bytes; ``variables``, or None and ``why`` they are not known.

        Raises:
            NotFound: there is no such checkpoint, or it is the first.
            ImageDamaged, StoreError: one of them cannot be read.
        """
        info, record = await self.checkpoint_of(kernel_id, id)
        if not (other := other or record.parent):
            raise NotFound("the checkpoint is the first one", advice="name another one to compare it with")
        before = self.records.read(CheckpointRecord, other)
        earlier, _ = await self.checkpoint_of(before.kernel_id, other)
        here, there = self.kept_variables.kept(id), self.kept_variables.kept(other)
        why = "" if here and there else f"the variables of checkpoint {id if not here else other} were not listed:"
        if why:
            why += " lists are made of idle kernels of IPython only"
        return {"with": other, "why": why or None} | await self.read(self._compare, info, earlier, here, there)

    def _compare(self, info: SnapshotInfo, earlier: SnapshotInfo, here: str, there: str) -> dict[str, Any]:
        with self.store.open(info) as mine, self.store.open(earlier) as theirs:
            now, before = Memory(mine), Memory(theirs)
            variables = None
            if here and there:
                variables = Listing(here).since(Listing(there), partial(changed, now, before))
            return {"memory": shared(now, before), "variables": variables}

    # ------------------------------------------------------------------------------------------ what can be done

    async def save(self, kernel_id: str, *, name: str = "", note: str = "", reason: str = "") -> dict[str, Any]:
        """Keep a living kernel as a checkpoint; it runs on.

        Raises:
            NotFound, Unsuitable: no such kernel; it is parked, or was not started by Torpor.
            TorporError: as `torpor.checkpoint`; the kernel runs on.
        """
        async with self._operation(kernel_id, "saving") as operation:
            with self.gate(kernel_id).hold():
                info = await self._save(kernel_id, operation, "run", name=name, reason=reason, note=note)
        self._told(kernel_id, "saved")
        self.when_saved(kernel_id)
        return self._checkpoint(info)

    async def park(self, kernel_id: str, *, name: str = "", reason: str = "parked") -> dict[str, Any]:
        """Keep a living kernel as a checkpoint and end its process; for its notebook it waits. Raises as `save`."""
        async with self._operation(kernel_id, "parking") as operation:
            await self._park(kernel_id, operation, name=name, reason="" if name else reason)
        self._told(kernel_id, "parked")
        self.when_saved(kernel_id)
        return self.describe(kernel_id)

    async def resume(self, kernel_id: str, *, files_as_they_are: bool = False) -> dict[str, Any]:
        """Wake a parked kernel: it goes on where it was, and gets the requests that waited for it.

        Args:
            kernel_id: the kernel.
            files_as_they_are: also when files that it has open were changed in place since.

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
                await self._wake(kernel_id, operation, info, record, again=False, files=_files(files_as_they_are))
        self._told(kernel_id, "woken")
        return self.describe(kernel_id)

    async def restore(
        self,
        kernel_id: str,
        id: str,
        *,
        discard: bool = False,
        notebook: bool = False,
        files_as_they_are: bool = False,
    ) -> dict[str, Any]:
        """Take a kernel back to a checkpoint, in place; what it is now is kept as a checkpoint before.

        A kernel that is no longer there comes back under its id.

        Args:
            kernel_id: the kernel.
            id: one of its checkpoints.
            discard: do not keep what it is now; for a kernel that cannot be kept as it is.
            notebook: bring the notebook's file back, too. What it is now is kept with the checkpoint of what the kernel
                is now; where there is none, in a file beside it.
            files_as_they_are: also when files that the kernel had open were changed in place since.

        Returns:
            As `describe`, with ``undo``, the checkpoint of what it was; with ``notebook``, the path that was brought
            back, and ``notebook_kept``, the path of the file beside it.

        Raises:
            NotFound: no such checkpoint.
            Unsuitable: it has no notebook that could be brought back.
            TorporError: as `torpor.checkpoint` and `torpor.restore`; the kernel is as before, or parked.
        """
        info, record = await self.checkpoint_of(kernel_id, id)
        text, path = self.kept_notebooks.kept(id), self._notebook_of(record)
        if notebook and (not text or path is None):
            raise Unsuitable(
                "no notebook is kept with the checkpoint"
                if not text
                else f"the notebook {record.notebook} is not below this server's folder",
                advice="go back without the notebook",
            )
        if kernel_id not in self.manager:
            await self._register(self._as_parked(record))
        before: SnapshotInfo | None = None
        files = _files(files_as_they_are)
        async with self._operation(kernel_id, "restoring") as operation:
            state, provisioner = self.state(kernel_id), self._suitable(kernel_id)
            if state.parked:
                await self._wake(kernel_id, operation, info, record, again=True, files=files)
            elif discard or provisioner.kernel is None or provisioner.kernel.poll() is not None:
                await self._discard(kernel_id, provisioner, record)
                await self._wake(kernel_id, operation, info, record, again=True, files=files)
            else:
                name = f"{NAMES['going-back']} to {record.name or info.short}"
                before = await self._park(kernel_id, operation, name=name, reason="going-back", about=id)
                try:
                    await self._wake(kernel_id, operation, info, record, again=True, files=files)
                except TorporError:
                    operation.cancelled = False  # what it was comes back, whoever waits
                    _, kept = await self.checkpoint_of(kernel_id, before.id)
                    await self._wake(kernel_id, operation, before, kept, again=False)
                    raise
            gate = self.gate(kernel_id)
            gate.cell, gate.execution_count = record.cell, record.execution_count
        self._told(kernel_id, "restored")
        answer = self.describe(kernel_id) | {"undo": before.id if before else None}
        if notebook and path is not None:
            answer |= await self._bring_back(path, text, before)
        return answer

    def _notebook_of(self, record: CheckpointRecord) -> str | None:
        """Where the notebook of a checkpoint's kernel is now: it may have been renamed since."""
        sessions = self._sessions(record.kernel_id)
        return self._relative(sessions[0].path if sessions else record.notebook)

    async def _bring_back(self, path: str, text: str, before: SnapshotInfo | None) -> dict[str, Any]:
        """Write a notebook, with what is there now kept somewhere."""
        now = await self.notebooks.read(path)
        kept = None
        if now and now != text and not (before and self.kept_notebooks.kept(before.id) == now):
            kept = await self.notebooks.beside(path, "before")
            await self.notebooks.write(kept, now)
        await self.notebooks.write(path, text)
        return {"notebook": path, "notebook_kept": kept}

    async def fork(
        self, kernel_id: str, id: str, *, path: str | None = None, files_as_they_are: bool = False
    ) -> dict[str, Any]:
        """Wake a checkpoint as a second kernel that runs beside the first, with a copy of its notebook.

        Args:
            kernel_id: the first kernel, living, parked or gone.
            id: one of its checkpoints.
            path: of the copy, as the contents API has it; by default one beside the notebook.
            files_as_they_are: also when files that the kernel had open were changed in place since.

        Returns:
            The new ``kernel``, the ``path`` of the copy and the id of their ``session``; these two are None for a
            kernel without a notebook below this server's folder.

        Raises:
            NotFound: no such checkpoint.
            Unsuitable: its kernel cannot be forked, or something is at the path already.
            TorporError: as `torpor.restore`. The first kernel is not touched.
        """
        info, record = await self.checkpoint_of(kernel_id, id)
        forks.refuse(record)
        source = self._notebook_of(record)
        if path is None:
            path = await self.notebooks.beside(source, "fork") if source else None
        elif not path.endswith(SUFFIX) or await self.notebooks.exists(path):
            raise Unsuitable(f"{path} is no new notebook", advice=f"name a new file that ends in {SUFFIX}")
        text = self.kept_notebooks.kept(id) or await self.notebooks.read(source) or empty(record.kernel_name)
        known = kernel_id in self.manager
        async with self._operation(kernel_id, "forking") if known else nullcontext(Operation("forking")) as operation:
            fork = await self._fork(info, record, operation, path, text, _files(files_as_they_are))
        self._told(fork.id, "forked")
        session = fork.sessions[0].id if fork.sessions else None
        return {"kernel": self.describe(fork.id), "path": path, "session": session}

    def cancel(self, kernel_id: str) -> dict[str, Any]:
        """Give up what is being done to a kernel: it will be as before. What is done already stays done.

        Raises:
            NotFound, Unsuitable: no such kernel; nothing is being done to it.
        """
        self._provisioner(kernel_id)
        operation = self.state(kernel_id).operation
        if operation is None:
            raise Unsuitable("nothing is being done to the kernel", advice="it is done already, or has not begun")
        operation.cancelled = True
        return self.describe(kernel_id)

    async def change(self, kernel_id: str, id: str, **changes: Any) -> dict[str, Any]:
        """Change the name, note or pin of a checkpoint. Raises NotFound, StoreError."""
        info, record = await self.checkpoint_of(kernel_id, id)
        for what, value in changes.items():
            setattr(record, what, value)
        if "name" in changes:
            record.reason = ""
        if "pinned" in changes:
            await self.run(self.store.pin, id, changes["pinned"] or self._holds(record))
        self.records.write(record)
        self._unwritten.pop(id, None)
        self._told(kernel_id, "changed")
        return self._checkpoint(info)

    async def delete(self, kernel_id: str, id: str) -> PruneReport:
        """Delete a checkpoint. Raises NotFound, Unsuitable, StoreError."""
        _, record = await self.checkpoint_of(kernel_id, id)
        if self._holds(record):
            raise Unsuitable("the kernel is parked in this checkpoint", advice="wake it, or shut it down, first")
        if record.pinned:
            raise Unsuitable("the checkpoint is pinned", advice="unpin it first")
        report = await self.run(self.store.remove, id)
        self.records.remove(CheckpointRecord, id)
        self.kept_notebooks.remove(id)
        self.kept_variables.remove(id)
        for later in self.records.all(CheckpointRecord):
            if isinstance(later, CheckpointRecord) and later.parent == id:  # the tree stays one
                later.parent = record.parent
                self.records.write(later)
        if kernel_id not in self.manager:
            self._tidy(kernel_id)
        self._told(kernel_id, "deleted")
        return report

    def _holds(self, record: CheckpointRecord) -> bool:
        """Whether the kernel is parked in this checkpoint."""
        try:
            return self.records.read(KernelRecord, record.kernel_id).snapshot == record.id
        except NotFound:
            return False

    # ------------------------------------------------------------------------------------------ the server's end

    async def park_all(self, reason: str) -> None:
        """Park what lives, one after the other; why one cannot be kept is told in the log."""
        for kernel_id in self.manager.list_kernel_ids():
            while self.state(kernel_id).operation:
                await asyncio.sleep(0.02)
            if kernel_id in self.manager and self.is_ours(kernel_id) and not self.state(kernel_id).parked:
                try:
                    await self.park(kernel_id, reason=reason)
                except TorporError as error:
                    self.log.warning("Kernel %s cannot be kept, and ends with the server: %s", kernel_id, error)

    async def leave(self) -> None:
        """The server stops: park what lives; what cannot be parked is left to Jupyter, which ends it."""
        await self.park_all("stopping")
        self.leave_parked()

    def leave_parked(self) -> None:
        """The server stops, and Jupyter ends what lives: only what is parked stays."""
        for kernel_id in self.manager.list_kernel_ids():
            if self.state(kernel_id).parked:
                self._let_go(kernel_id)


def _files(as_they_are: bool) -> Files:
    return "as-they-are" if as_they_are else "as-they-were"

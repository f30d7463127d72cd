"""The checkpoints of kernels: the record of each, and the files that are kept with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torpor import client_ports
from torpor.errors import NotFound, TorporError
from torpor.store import PruneReport, SnapshotInfo
from torpor_jupyter.data.attachments import Attachments
from torpor_jupyter.data.memory_diff import Memory, changed, shared
from torpor_jupyter.data.notebooks import SUFFIX
from torpor_jupyter.data.records import CheckpointRecord, KernelRecord
from torpor_jupyter.data.variables import Listing
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.registry import TAG, Registry
from torpor_jupyter.kernels.state import Unsuitable
from torpor_jupyter.kernels.workers import Workers


class Checkpoints:
    """The checkpoints of one server's kernels. All methods belong to the server's event loop."""

    def __init__(self, registry: Registry, workers: Workers, emit: Callable[[str, str], None]) -> None:
        """Read nothing yet. `emit` is called with a kernel's id and the name of an event about its checkpoints."""
        self._registry, self._workers, self._emit = registry, workers, emit
        self._records, self._store = registry.records, registry.store
        self.notebooks = Attachments(self._records.folder / "notebooks", SUFFIX, "the notebook")
        self.variables = Attachments(self._records.folder / "variables", ".json", "the list of variables")
        self.cells = registry.cells
        self._unwritten: dict[str, CheckpointRecord] = {}
        """Records of checkpoints that are in the store, for which the store had no room."""

    def add(self, record: CheckpointRecord, notebook: str, variables: str, cells: str = "") -> None:
        """Write the record of a new checkpoint, and its files. An error is only logged.

        The snapshot itself is safe, and the kernel's process may have ended: so this must not fail.
        """
        try:
            if cells:
                self.cells.keep(record.id, cells)
            if variables:
                self.variables.keep(record.id, variables, like=record.parent)
            if notebook:
                self.notebooks.keep(record.id, notebook, like=record.parent)
                record.has_notebook = True
        except TorporError as error:
            self._registry.log.error("Checkpoint %s is incomplete: %s", record.id, error)
        try:
            self._records.write(record)
        except TorporError as error:
            self._unwritten[record.id] = record
            self._registry.log.error("Cannot store the name of checkpoint %s until there is room: %s", record.id, error)

    async def find(self, kernel_id: str, id: str) -> tuple[SnapshotInfo, CheckpointRecord]:
        """One checkpoint of a kernel. Raises NotFound, StoreError."""
        record = self._unwritten.get(id) or self._records.read(CheckpointRecord, id)
        info = await self._workers.read(self._store.resolve, id)
        if info.id != id or info.tags.get(TAG) != kernel_id or record.kernel_id != kernel_id:
            raise NotFound(f"kernel {kernel_id} has no checkpoint {id}")
        return info, record

    async def list(self, kernel_id: str | None = None) -> list[dict[str, Any]]:
        """The checkpoints of one kernel, living or gone, or of all; oldest first. Raises StoreError."""

        def described() -> list[dict[str, Any]]:
            infos = self._store.snapshots()
            return [self.describe(info) for info in infos if TAG in info.tags and kernel_id in (None, info.tags[TAG])]

        return await self._workers.read(described)

    def describe(self, info: SnapshotInfo) -> dict[str, Any]:
        """A checkpoint for the REST API."""
        try:
            record = self._unwritten.get(info.id) or self._records.read(CheckpointRecord, info.id)
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
            "path": self._registry.contents_path(record.notebook),
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
        info, record = await self.find(kernel_id, id)
        if not (other := other or record.parent):
            raise NotFound("the checkpoint is the kernel's first", advice="name another one to compare it with")
        before = self._records.read(CheckpointRecord, other)
        earlier, _ = await self.find(before.kernel_id, other)
        here, there = self.variables.kept(id), self.variables.kept(other)
        why = None if here and there else _not_listed(other if here else id)
        return {"with": other, "why": why} | await self._workers.read(self._compare, info, earlier, here, there)

    async def variables_at(self, kernel_id: str, id: str) -> dict[str, Any]:
        """The variables that a kernel had at a checkpoint, or None and ``why``. Raises NotFound, StoreError."""
        await self.find(kernel_id, id)
        text = await self._workers.read(self.variables.kept, id)
        found = [variable.as_json() for variable in Listing(text).variables.values()] if text else None
        return {"variables": found, "why": None if text else _not_listed(id)}

    def _compare(self, info: SnapshotInfo, earlier: SnapshotInfo, here: str, there: str) -> dict[str, Any]:
        with self._store.open(info) as mine, self._store.open(earlier) as theirs:
            now, before = Memory(mine), Memory(theirs)
            variables = None
            if here and there:
                variables = Listing(here).since(Listing(there), partial(changed, now, before))
            return {"memory": shared(now, before), "variables": variables}

    async def change(self, kernel_id: str, id: str, **changes: Any) -> dict[str, Any]:
        """Change the name, note or pin of a checkpoint. Raises NotFound, StoreError."""
        info, record = await self.find(kernel_id, id)
        for what, value in changes.items():
            setattr(record, what, value)
        if "name" in changes:
            record.reason = ""
        if "pinned" in changes:
            await self._workers.run(self._store.pin, id, changes["pinned"] or self._holds(record))
        self._records.write(record)
        self._unwritten.pop(id, None)
        self._emit(kernel_id, "changed")
        return self.describe(info)

    async def delete(self, kernel_id: str, id: str) -> PruneReport:
        """Delete a checkpoint. Raises NotFound, Unsuitable, StoreError."""
        _, record = await self.find(kernel_id, id)
        if self._holds(record):
            raise Unsuitable("the kernel is parked in this checkpoint", advice="wake it, or shut it down, first")
        if record.pinned:
            raise Unsuitable("the checkpoint is pinned", advice="unpin it first")
        report = await self._workers.run(lambda: self._store.remove(id, force=True))  # no longer pinned, see above
        self._records.remove(CheckpointRecord, id)
        self.notebooks.remove(id)
        self.variables.remove(id)
        self.cells.remove(id)
        await self._workers.run(self._connect, id, record.parent)
        if kernel_id not in self._registry.manager:
            await self._workers.run(self._registry.remove_unused_log, kernel_id)
        self._emit(kernel_id, "deleted")
        return report

    def _connect(self, deleted: str, parent: str) -> None:
        """Keep the tree one: what came after a checkpoint that is gone comes after its parent now."""
        for later in self._records.all(CheckpointRecord):
            if isinstance(later, CheckpointRecord) and later.parent == deleted:
                later.parent = parent
                self._records.write(later)

    def _holds(self, record: CheckpointRecord) -> bool:
        """Whether the kernel is parked in this checkpoint."""
        try:
            return self._records.read(KernelRecord, record.kernel_id).snapshot == record.id
        except NotFound:
            return False


def _not_listed(id: str) -> str:
    return f"the variables of checkpoint {id} were not listed: lists are made of idle kernels of IPython only"

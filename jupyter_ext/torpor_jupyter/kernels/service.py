"""The actions on the kernels of a server: save, park, wake, go back to a checkpoint, fork.

A kernel is *living* (it has a process) or *parked* (it is in a snapshot, and its manager thinks that it lives). During
an operation, requests to the kernel wait at its Gate. The engine works in threads of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from logging import Logger
from pathlib import Path
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager

from torpor import Files
from torpor.errors import StoreError, TorporError
from torpor.store import SnapshotInfo, Store
from torpor_jupyter.data import carried
from torpor_jupyter.data.notebooks import SUFFIX, Notebooks, NotServed, empty
from torpor_jupyter.data.records import TITLES, CheckpointRecord
from torpor_jupyter.kernels import forks
from torpor_jupyter.kernels.checkpoints import Checkpoints
from torpor_jupyter.kernels.connections import Connections
from torpor_jupyter.kernels.listener import Listener
from torpor_jupyter.kernels.notes import Notes
from torpor_jupyter.kernels.operations import Operations
from torpor_jupyter.kernels.provisioner import SERVICE
from torpor_jupyter.kernels.registry import TAG, Registry
from torpor_jupyter.kernels.state import Operation, Unsuitable
from torpor_jupyter.kernels.transcript import Transcript
from torpor_jupyter.kernels.workers import SAVERS, Workers


class Service:
    """Manages the kernels of one server. All methods must be called in the server's event loop."""

    def __init__(
        self,
        manager: AsyncMappingKernelManager,
        sessions: SessionManager,
        contents: Any,
        store: Store,
        log: Logger,
        emit: Callable[[str, str], None] = lambda kernel_id, what: None,
    ) -> None:
        """Manage the kernels of a kernel manager.

        Args:
            manager: the server's kernel manager.
            sessions: the server's session manager.
            contents: the server's contents manager.
            store: the store for snapshots; the records are kept beside them.
            log: the server's log.
            emit: called with a kernel's id and the name of an event.
        """
        self.log, self._emit = log, emit
        self.workers = Workers()
        self.notebooks = Notebooks(contents)
        self.registry = Registry(manager, sessions, store, log)
        self.checkpoints = Checkpoints(self.registry, self.workers, emit)
        self.listener = Listener(self.registry, emit)
        self.notes = Notes(self.registry, self.workers, self.listener)
        self.connections = Connections(self.registry, self.workers, self.listener)
        self.operations = Operations(
            self.registry, self.checkpoints, self.connections, self.notebooks, self.workers, emit
        )
        self.when_saved: Callable[[str], None] = lambda kernel_id: None
        """Called with a kernel's id after it was saved."""
        self.when_cell_ended: Callable[[str, float], None] = lambda kernel_id, seconds: None
        """Called with a kernel's id and the duration of the cell in seconds."""
        setattr(manager, SERVICE, self)

    async def adopt(self) -> None:
        """Find the kernels that earlier servers have left, and go on with what their cells say."""
        self.notes.watch()
        await self.registry.adopt_all()
        for kernel_id in self.registry.manager.list_kernel_ids():
            if self.registry.is_managed(kernel_id) and not self.registry.state(kernel_id).parked:
                await self.notes.take_up(kernel_id)

    async def save(self, kernel_id: str, *, name: str = "", note: str = "", reason: str = "") -> dict[str, Any]:
        """Save a living kernel in a checkpoint; it runs on.

        Raises:
            NotFound, Unsuitable: there is no such kernel, or it is parked, or was not started by Torpor.
            TorporError: as `torpor.checkpoint`; the kernel runs on.
        """
        async with self.operations.begin(kernel_id, "saving") as operation:
            with self.registry.gate(kernel_id).hold():
                info = await self.operations.save(kernel_id, operation, "run", name=name, reason=reason, note=note)
        self._emit(kernel_id, "saved")
        self.when_saved(kernel_id)
        return self.checkpoints.describe(info)

    async def park(self, kernel_id: str, *, name: str = "", reason: str = "parked") -> dict[str, Any]:
        """Save a living kernel in a checkpoint and end its process. To its notebook it seems busy. Raises as `save`."""
        async with self.operations.begin(kernel_id, "parking") as operation:
            await self.operations.park(kernel_id, operation, name=name, reason="" if name else reason)
        self._emit(kernel_id, "parked")
        self.when_saved(kernel_id)
        return self.registry.describe(kernel_id)

    async def resume(self, kernel_id: str, *, files_as_they_are: bool = False) -> dict[str, Any]:
        """Wake a parked kernel: it continues where it was, and gets the requests that waited for it.

        Args:
            kernel_id: the kernel.
            files_as_they_are: wake it even if files that it has open were changed in place since.

        Raises:
            NotFound, Unsuitable: there is no such kernel, or it is not parked.
            TorporError: as `torpor.restore`; the kernel stays parked.
        """
        state = self.registry.state(kernel_id)
        self.registry.provisioner(kernel_id)
        if not state.parked:
            raise Unsuitable(f"kernel {kernel_id} is not parked")
        async with (
            self.operations.begin(kernel_id, "waking") as operation,
            _entered_in_thread(self.registry.claimed(kernel_id)) as snapshot,
        ):
            info, record = await self.checkpoints.find(kernel_id, snapshot)
            await self.operations.wake(kernel_id, operation, info, record, again=False, files=_files(files_as_they_are))
        self._emit(kernel_id, "woken")
        return self.registry.describe(kernel_id)

    async def restore(
        self,
        kernel_id: str,
        id: str,
        *,
        discard: bool = False,
        notebook: bool = False,
        files_as_they_are: bool = False,
    ) -> dict[str, Any]:
        """Take a kernel back to a checkpoint, in place. Its present state is saved in a checkpoint before.

        A kernel that is gone comes back under its id.

        Args:
            kernel_id: the kernel.
            id: one of its checkpoints.
            discard: do not save the present state; for a kernel that cannot be saved.
            notebook: also bring the notebook's file back. Its present content is kept with the checkpoint of the
                present state; if there is none, in a file beside the notebook.
            files_as_they_are: do so even if files that the kernel had open were changed in place since.

        Returns:
            As `describe`, with ``undo``, the id of the checkpoint of the former state. With `notebook` also
            ``notebook``, the path that was brought back, and ``notebook_kept``, the path of the file beside it;
            or, if it could not be written, ``notebook_failed``, why.

        Raises:
            NotFound: there is no such checkpoint.
            Unsuitable: the checkpoint has no notebook that could be brought back.
            TorporError: as `torpor.checkpoint` and `torpor.restore`; the kernel is as before, or parked.
        """
        info, record = await self.checkpoints.find(kernel_id, id)
        text, path = self.checkpoints.notebooks.kept(id), self._notebook_of(record)
        if notebook and (not text or path is None):
            raise Unsuitable(
                "no notebook is kept with the checkpoint"
                if not text
                else f"the notebook {record.notebook} is not below this server's folder",
                advice="go back without the notebook",
            )
        if kernel_id not in self.registry.manager:
            await self.registry.register(self.registry.as_parked(record))
            self.registry.state(kernel_id).transcript = Transcript()  # the page that shut it down has seen its output
        before: SnapshotInfo | None = None
        files = _files(files_as_they_are)
        async with self.operations.begin(kernel_id, "restoring") as operation:
            state, provisioner = self.registry.state(kernel_id), self.registry.suitable(kernel_id)
            if state.parked:
                await self.operations.wake(kernel_id, operation, info, record, again=True, files=files)
            elif discard or provisioner.kernel is None or provisioner.kernel.poll() is not None:
                await self.operations.discard(kernel_id, provisioner, record)
                await self.operations.wake(kernel_id, operation, info, record, again=True, files=files)
            else:
                name = f"{TITLES['going-back']} to {record.name or info.short}"
                before = await self.operations.park(kernel_id, operation, name=name, reason="going-back", about=id)
                try:
                    await self.operations.wake(kernel_id, operation, info, record, again=True, files=files)
                except TorporError:
                    operation.cancelled = False  # waking the former state must not be cancelled
                    _, kept = await self.checkpoints.find(kernel_id, before.id)
                    await self.operations.wake(kernel_id, operation, before, kept, again=False)
                    raise
            gate = self.registry.gate(kernel_id)
            gate.cell, gate.execution_count = record.cell, record.execution_count
        self._emit(kernel_id, "restored")
        answer = self.registry.describe(kernel_id) | {"undo": before.id if before else None}
        if notebook and path is not None:
            try:
                answer |= await self._bring_back(path, text, before)
            except NotServed as error:  # the kernel is back all the same, and can be brought forth again
                answer |= {"notebook": None, "notebook_kept": None, "notebook_failed": error.message}
        return answer

    def _notebook_of(self, record: CheckpointRecord) -> str | None:
        """The present path of the notebook of a checkpoint's kernel: it may have been renamed since."""
        sessions = self.registry.sessions_of(record.kernel_id)
        return self.registry.contents_path(sessions[0].path if sessions else record.notebook)

    async def _bring_back(self, path: str, text: str, before: SnapshotInfo | None) -> dict[str, Any]:
        """Write a notebook. Its present content is kept in a file beside it, unless the checkpoint `before` has it."""
        now = await self.notebooks.read(path)
        kept = None
        if now and now != text and not (before and self.checkpoints.notebooks.kept(before.id) == now):
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
            path: the path of the copy, in the form of the contents API; by default one beside the notebook.
            files_as_they_are: fork it even if files that the kernel had open were changed in place since.

        Returns:
            The new ``kernel``, the ``path`` of the copy and the id of their ``session``; these two are None for a
            kernel without a notebook below this server's folder.

        Raises:
            NotFound: there is no such checkpoint.
            Unsuitable: its kernel cannot be forked, or the path exists already.
            NotServed: the copy cannot be written.
            TorporError: as `torpor.restore`. The first kernel is not touched.
        """
        info, record = await self.checkpoints.find(kernel_id, id)
        forks.check(record)
        source = self._notebook_of(record)
        if path is None:
            path = await self.notebooks.beside(source, "fork") if source else None
        elif not path.endswith(SUFFIX) or await self.notebooks.exists(path):
            raise Unsuitable(
                f"{path} cannot be the new notebook", advice=f"name a file that ends in {SUFFIX} and does not exist yet"
            )
        elif not await self.notebooks.has_folder(path):
            raise Unsuitable(f"there is no folder for {path}", advice="make the folder, or name another one")
        text = self.checkpoints.notebooks.kept(id) or await self.notebooks.read(source) or empty(record.kernel_name)
        known = kernel_id in self.registry.manager
        async with (
            self.operations.begin(kernel_id, "forking") if known else nullcontext(Operation("forking")) as operation
        ):
            fork = await self.operations.fork(info, record, operation, path, text, _files(files_as_they_are))
        self._emit(fork.id, "forked")
        session = fork.sessions[0].id if fork.sessions else None
        return {"kernel": self.registry.describe(fork.id), "path": path, "session": session}

    # ------------------------------------------------------------------------------------------ to another machine

    async def export(self, kernel_id: str, id: str, *, path: str | None = None) -> dict[str, Any]:
        """Write a checkpoint with all that is kept with it to one file; its ``path``.

        Args:
            kernel_id: the kernel.
            id: one of its checkpoints.
            path: of the file, below the server's root; by default beside the notebook.

        Raises:
            NotFound: there is no such checkpoint.
            Unsuitable, NotServed: the path cannot be used.
            Refused, StoreError, ImageDamaged: as `data.carried.export`.
        """
        info, record = await self.checkpoints.find(kernel_id, id)
        path = path or await self.notebooks.beside(self._notebook_of(record) or "kernel", "kernel", carried.SUFFIX)
        kept = carried.Carried(record, self.checkpoints.notebooks.kept(id), self.checkpoints.variables.kept(id))
        await asyncio.to_thread(carried.export, self.registry.store, info, kept, self._carrier(path))
        return {"path": path}

    async def import_(self, path: str) -> dict[str, Any]:
        """Take a file of `export` into the store, and write the notebook in it beside it; the ``path`` of the notebook.

        The kernel counts as one that is gone: going back to its checkpoint, or a fork, wakes it.

        Raises:
            NotFound: there is no such file.
            Unsuitable, NotServed: the path cannot be used, or the notebook not be written.
            Refused, StoreError, ImageDamaged: as `data.carried.import_file`.
        """
        found = await asyncio.to_thread(carried.import_file, self.registry.store, self._carrier(path), TAG)
        record, folder = found.record, os.path.dirname(path)
        name = os.path.basename(record.notebook) or os.path.basename(path).removesuffix(carried.SUFFIX) + SUFFIX
        notebook = os.path.join(folder, name)
        if await self.notebooks.exists(notebook):
            notebook = await self.notebooks.beside(notebook, "imported")
        record.notebook = os.path.join(self.registry.manager.root_dir, notebook)
        record.parent, record.pinned, record.log = "", False, ""
        self.checkpoints.add(record, found.notebook, found.variables)
        await self.notebooks.write(notebook, found.notebook or empty(record.kernel_name))
        self._emit(record.kernel_id, "saved")
        return {"path": notebook, "kernel_id": record.kernel_id, "id": record.id}

    def _carrier(self, path: str) -> Path:
        """The file of a checkpoint that is carried. Raises Unsuitable."""
        root = os.path.realpath(self.registry.manager.root_dir)
        folder, name = os.path.split(os.path.join(root, path))
        folder = os.path.realpath(folder)
        if not name.endswith(carried.SUFFIX) or os.path.commonpath([root, folder]) != root or not os.path.isdir(folder):
            raise Unsuitable(
                f"{path} cannot be used", advice=f"name a file below the server's folder that ends in {carried.SUFFIX}"
            )
        return Path(folder, name)

    # ------------------------------------------------------------------------------------------ what cells say

    def take_cells(self, kernel_id: str, session: str) -> list[dict[str, Any]]:
        """Give a page the cells of pages that have gone, with the kernel's messages about them. Raises NotFound."""
        self.registry.provisioner(kernel_id)
        return self.listener.take(kernel_id, session)

    def interrupt_parked(self, kernel_id: str) -> bool:
        """If a kernel is parked, abort the cells that wait for it. Return whether it is parked."""
        state = self.registry.state(kernel_id)
        if not state.parked:
            return False
        state.gate.abort_waiting()
        self._emit(kernel_id, "interrupted")
        return True

    # ------------------------------------------------------------------------------------------ the server's end

    async def park_all(self, reason: str) -> None:
        """Park all living kernels, SAVERS at a time. If one cannot be saved, log why."""
        limit = asyncio.Semaphore(SAVERS)

        async def park(kernel_id: str) -> str | None:
            async with limit:
                return None if await self._park_if_living(kernel_id, reason) else kernel_id

        for kernel_id in await asyncio.gather(*map(park, self.registry.manager.list_kernel_ids())):
            if kernel_id:  # a store may have room for one kernel where it has none for two that are saved at a time
                await self._park_if_living(kernel_id, reason)

    async def _park_if_living(self, kernel_id: str, reason: str) -> bool:
        """Park a kernel, or log why that fails. Return False if it was for the store."""
        registry = self.registry
        while registry.state(kernel_id).operation:
            await asyncio.sleep(0.02)
        if kernel_id in registry.manager and registry.is_managed(kernel_id) and not registry.state(kernel_id).parked:
            try:
                await self.park(kernel_id, reason=reason)
            except TorporError as error:
                self.log.warning("Kernel %s cannot be saved: %s", kernel_id, error)
                return not isinstance(error, StoreError)
            except Exception:  # an error with one kernel must not keep the others from being saved
                self.log.exception("Kernel %s cannot be saved", kernel_id)
        return True

    async def leave(self) -> None:
        """Before the server stops: park the living kernels. The next server finds those that are parked, or live on.

        Jupyter ends all others.
        """
        registry = self.registry
        self.notes.stop()
        if registry.parks_at_stop:
            await self.park_all("stopping")
        left = []
        for kernel_id in registry.manager.list_kernel_ids():
            try:
                if registry.state(kernel_id).parked:
                    registry.release(kernel_id, lives=False)
                elif registry.parks_at_stop and registry.leaves_unsaved and registry.can_be_left(kernel_id):
                    self.log.warning("Kernel %s lives on, and the next server finds it", kernel_id)
                    left.append(kernel_id)
                elif registry.parks_at_stop:
                    self.log.warning("Kernel %s ends with the server", kernel_id)
            except Exception:  # as above
                self.log.exception("Kernel %s cannot be left to the next server", kernel_id)
        try:
            await self.notes.hand_over(left)
        except Exception:  # as above
            self.log.exception("What the cells of kernels say is not kept")
        for kernel_id in left:
            try:
                registry.release(kernel_id, lives=True)
            except Exception:  # as above
                self.log.exception("Kernel %s cannot be left to the next server", kernel_id)

    def close(self) -> None:
        """End the worker threads, and what waits for the end of this process."""
        self.notes.close()
        self.workers.close()


def _files(as_they_are: bool) -> Files:
    return "as-they-are" if as_they_are else "as-they-were"


@asynccontextmanager
async def _entered_in_thread(manager: AbstractContextManager[str]) -> AsyncIterator[str]:
    """Enter a context in a thread: to see that another server's host is gone takes most of a minute."""

    def leave(entering: asyncio.Task[str]) -> None:
        if not entering.exception():
            manager.__exit__(None, None, None)

    entering = asyncio.create_task(asyncio.to_thread(manager.__enter__))
    try:
        entered = await asyncio.shield(entering)
    except asyncio.CancelledError:
        entering.add_done_callback(leave)
        raise
    try:
        yield entered
    finally:
        manager.__exit__(None, None, None)

"""Dump a whole tree: grab its state under the freeze, describe it in an image once the tree runs again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import cache
from itertools import chain
from typing import Any

from torpor import procfs
from torpor.dump import self_report
from torpor.dump.file_watch import FileWatches
from torpor.dump.process_dump import ProcessDump, SnapshotLost, ZombieDump
from torpor.dump.series import Key, Series
from torpor.errors import CheckpointFailed, Refused, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects.fds import descriptors
from torpor.objects.kind import Built
from torpor.objects.memory import shared_memory
from torpor.objects.memory.incremental import Before
from torpor.objects.memory.mapped_files import MappedFiles
from torpor.objects.memory.own_pages import Ranges
from torpor.objects.memory.shared_memory import SharedMemory
from torpor.objects.part import EnteredTree, TreePart
from torpor.objects.paths import fingerprints
from torpor.objects.paths.file_content import Buffers
from torpor.objects.paths.mapped_names import MappedNames
from torpor.objects.process import birth_order, host_requirements, security_labels, texts, tree
from torpor.objects.registry import TREE_PARTS
from torpor.objects.sockets import buffers
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Process
from torpor.remote.snapshot import Watch
from torpor.remote.waits import Waits
from torpor.remote.written import WriteWatch
from torpor.store import SnapshotWriter
from torpor.util.sizes import readable

_STUBS = CodeStubs()


def _parts_of_users(uids: frozenset[int]) -> list[TreePart[Any, Any, Any]]:
    """Return the tree parts that processes with these user ids can have."""
    return [part for part in TREE_PARTS if part.may_have(uids)]


class TreeDump:
    """The dump of a frozen tree. A context manager: leaving it ends the snapshots of its memory."""

    def __init__(
        self,
        processes: Mapping[int, Process],
        waits: Waits,
        series: Series | None,
        still: str,
        buffers: Buffers | None = None,
        *,
        again: bool,
        pool: Executor | None = None,
        built: Built | None = None,
    ) -> None:
        """
        Args:
            processes: the frozen tree, parents before their children; becomes empty when the tree is thawed.
            waits: the system calls that its threads wait in.
            series: its earlier checkpoints.
            still: why the tree stays frozen until its image is written; empty if its memory is to be forked.
            buffers: for shared memory and files in memory; None: memory, however much it takes.
            again: whether the tree will run on, so that another checkpoint of the series may follow.
            pool: scans the snapshots of its memory; None if there will be none.
            built: for a tree that a restore has just built. The contents of memory and files are not read then. None
                for a tree that is saved.
        """
        self._processes = processes
        self._series = series
        self._again = again
        self._built = built
        self._before: dict[Key, Before] = {}
        self._still = still
        self._buffers = buffers or Buffers()
        self.shared = SharedMemory(None if built else self._buffers)
        self.files: MappedFiles | None = None
        self.descriptors: descriptors.GrabbedDescriptors
        self._names: MappedNames
        self.notices: list[str] = []
        """What will differ after a restore, and what was special about this save; a sentence each."""
        self._all: list[ProcessDump | ZombieDump] = []
        self._parents: dict[int, int] = {}
        self._outside_parents: dict[int, int] = {}
        self._waits = waits
        self._parts: dict[TreePart[Any, Any, Any], Any] = {}
        self._realtime_ns = 0
        self._pool = pool
        self._file_watches = FileWatches()

    def __enter__(self) -> TreeDump:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._living():
            process.abandon()
        if self.files:
            self.files.close()
        self._file_watches.close()

    def let_snapshots_go(self) -> None:
        """Let the snapshots exit while the image is published; all memory was read."""
        for taken in self._living():
            if taken.snapshot:
                taken.snapshot.let_go()

    @property
    def forked(self) -> bool:
        """Whether the memory of every process is in a snapshot, so that the tree may run on."""
        return not self._still

    def raise_if_lost(self, error: Exception) -> None:
        """Find out whether an error occurred because a process that is still needed has ended.

        Raises:
            CheckpointFailed: a process of the tree has ended.
            SnapshotLost: a snapshot has ended.
        """
        living = self._living()
        # A tree that runs again matters too: the description still asks its processes, for example about descriptors.
        for process in chain(self._processes.values(), (taken.process for taken in living)):
            if not process.zombie and procfs.is_ending(process.pid, process.pid):
                raise CheckpointFailed(f"{process.name} ended during the checkpoint") from error
        for taken in living:
            if taken.snapshot and taken.snapshot.needed and procfs.is_ending(taken.memory_pid, taken.memory_pid):
                why = f"the snapshot of {taken.process.name} was killed, perhaps for want of memory"
                raise SnapshotLost(why) from error

    def _living(self) -> list[ProcessDump]:
        return [taken for taken in self._all if isinstance(taken, ProcessDump)]

    def grab(self, *, reset_outside: bool, stdio: Mapping[int, int] | None) -> None:
        """Read the state that changes; all processes make their calls at the same time."""
        self._realtime_ns = time.time_ns()
        of_users = cache(_parts_of_users)
        for process in self._processes.values():
            self._parents[process.pid] = process.parent.pid if process.parent else 0
            if process.zombie:
                self._all.append(ZombieDump(process))
                continue
            taken = ProcessDump(process, _STUBS, self._waits)
            self._all.append(taken)
            taken.begin(self._stopped_children(process), of_users(taken.uids))
            if not process.parent:
                self._outside_parents[process.pid] = tree.outside_parent(taken.texts)
        with self_report.reported(self._living()):
            self._grab(reset_outside=reset_outside, stdio=stdio)

    def _grab(self, *, reset_outside: bool, stdio: Mapping[int, int] | None) -> None:
        """Grab what is left once all processes make their first calls, or have reported."""
        stats = {taken.pid: taken.texts.stat for taken in self._all}
        self.descriptors = descriptors.grab(
            list(stats), reset_outside=reset_outside, stdio=stdio, stats=stats, built=self._built
        )
        if self.forked:  # the kernel copies what is written while the forks are read
            self._buffers.reserve(sum(texts.private_memory(taken.texts.status) for taken in self._living()))
        if self_report.is_needed() and (found := descriptors.unsupported(self.descriptors)):  # later nobody can tell
            raise Refused("the tree has descriptors that cannot be kept", found)
        for file in descriptors.memory_files(self.descriptors):
            self.shared.grab_file(file)
        self._names = MappedNames(self.descriptors)
        for taken in self._living():
            if not self_report.is_needed():  # it has not been waited for: the descriptors are grabbed meanwhile
                taken.listen()
            maps = [self._names.lasting(taken.pid, mapping) for mapping in taken.injection.maps]
            self.shared.grab_mapped(taken.pid, maps, taken.ask)
            if self.descriptors.small:
                self.descriptors.small.take_mapped(one for one in maps if not shared_memory.is_memory(one))
        if self._names.reasons and self._built is None:
            raise Refused("the tree has mapped files that cannot be kept", self._names.reasons)
        self.notices += self._names.notices
        descriptors.ask(self.descriptors, {taken.pid: taken.ask for taken in self._living()})
        if self._buffers.on_disk:
            size = readable(self._buffers.on_disk)
            self.notices.append(f"it stood still while {size} of its shared memory was copied to disk: memory is short")
        self._take_parts()
        self._take_memory()
        # A snapshot outlives its process, and has the same root and current directory.
        self.descriptors.stand_ins = {taken.pid: taken.memory_pid for taken in self._living()}
        for taken in self._living():
            taken.leave()

    def _take_parts(self) -> None:
        """Grab what the processes share, with more calls of their own."""
        living = self._living()
        entered = EnteredTree(living, [taken.pid for taken in self._all])
        self._parts = {part: part.grab(entered) for part in TREE_PARTS}
        reasons = [reason for part, grabbed in self._parts.items() for reason in part.unsupported(grabbed)]
        if reasons:
            raise Refused(f"{living[0].name} cannot be kept", reasons)

    def _stopped_children(self, process: Process) -> list[int]:
        """Return the PIDs, in the tree's PID namespace, of the children that job control has stopped."""
        mine = (child for child in self._processes.values() if child.stopped and child.parent is process)
        return [tree.own_pid(child.pid) for child in mine]

    def _take_memory(self) -> None:
        """Fork the memory if possible, and find out what was written since the last checkpoint of the series."""
        living = self._living()
        if self._series:
            self._before = self._series.look({one.key: one.watchable for one in living}, again=self._again)
        self._still = self._still or self._unforkable()
        watches = {taken.pid: self._watch(taken) for taken in living}
        asked = living if self.forked else [taken for taken in living if watches[taken.pid]]
        for taken in asked:
            taken.begin_snapshot(fork=self.forked, watch=watches[taken.pid])
        made = [taken.finish_snapshot() for taken in asked]
        if self.forked and not all(made):
            self._still = (
                "the kernel refused to fork it, as a limit on processes (ulimit -u, pids.max) or on memory is reached"
            )
        for taken in living:
            if self.forked:
                assert self._pool is not None
                taken.walk(self._pool)
            else:
                taken.end_snapshot()

    def _unforkable(self) -> str:
        """Say why the tree's memory cannot be forked; empty if it can."""
        parents = set(self._parents.values())
        for taken in self._living():
            if taken.adopts_orphans and taken.pid in parents:
                return f"{taken.process.name} is a child subreaper, and would adopt the snapshots of its descendants"
            if taken.locks_memory:
                return f"{taken.process.name} has locked memory, which a fork would not show"
        return ""

    def _watch(self, taken: ProcessDump) -> Watch | None:
        """Return what to do with a userfaultfd of a process; None if none is needed."""
        series = self._series if self._again and self._series and self._series.lacks(taken.key) else None
        files = self.forked and self._again
        files = files and self._file_watches.files_of(taken.pid, taken.injection.maps, self.descriptors.small)
        if series is None and not files:
            return None

        def begin(fd: int) -> None:
            if watch := WriteWatch.made(fd):
                if files:
                    self._file_watches.begin(taken.pid, watch, alone=series is None)
                if series:
                    series.watch(taken.key, watch, taken.watchable)

        return begin

    def describe(self) -> tuple[pb.Tree, list[Ranges]]:
        """Return the image without its pages, and the ranges of each process whose pages must be stored.

        Raises:
            Refused: something that cannot be kept came up after the preflight.
        """
        image = pb.Tree()
        files = self.files = MappedFiles(image, self._built.in_memory if self._built else None)
        for living in self._living():
            self.shared.note_system_v(living.segments())
        self.shared.describe(image)
        own_pids = {taken.pid: taken.own_pid for taken in self._all}
        pages: list[Ranges] = []
        for taken in self._all:
            above = self._parents[taken.pid]
            parent = own_pids[above] if above else self._outside_parents[taken.pid] if taken is self._all[0] else 0
            if isinstance(taken, ZombieDump):
                tree.describe_zombie(taken.texts, parent, image.processes.add())
                self.notices += tree.notices_of_zombie(taken.texts)
                pages.append(Ranges(taken.pid, [], []))
            else:
                pages.append(taken.describe(parent, image, files, self.shared, self._names))
                image.processes[-1].shares_fds = taken.pid in self.descriptors.sharing
        # At a wake the root gets another parent: the process that wakes the tree.
        image.processes[0].ClearField("exit_signal")
        image.processes[0].ClearField("shares_fs")
        reported = {pid for taken in self._living() for pid in taken.reported_stops()}
        for process in image.processes:
            process.stop_told = process.stopped and process.pid in reported
        try:
            birth_order.arrange(image, birth_order.UNKNOWN_PID)
        except RestoreRefused as error:
            raise Refused("the tree cannot be kept: there would be no way to build it", error.reasons) from None
        descriptors.describe(self.descriptors, image, self.shared.index)
        self.notices += descriptors.notices(self.descriptors)
        if self._still and self._again:
            self.notices.append(f"it stayed frozen until its snapshot was written: {self._still}")
        root = self._living()[0]
        for part, grabbed in self._parts.items():
            part.describe(grabbed, image, own_pids, root.memory_pid)  # a snapshot outlives the root
        if reasons := [reason for part in TREE_PARTS for reason in part.unsupported_relations(image)]:
            raise Refused("the tree cannot be kept", reasons)
        xstate = next(iter(root.injection.xstates.values()))
        host_requirements.describe(image, root.texts.status, xstate, self._realtime_ns, root.clocks())
        image.host.began_ns = self.descriptors.small.began_ns if self.descriptors.small else 0
        image.host.label = root.texts.label
        if self._built is None:
            fingerprints.note_mapped(image, self._file_watches.unwritten if self._again and self.forked else None)
            self._file_watches.close()
        self.notices += security_labels.notices(root.texts.label)
        self.notices += buffers.smaller(image)
        return image, pages

    @property
    def before(self) -> list[Before | None]:
        """For each process, in the order of the image: what the last snapshot of the series has of it, or None."""
        return [self._before.get(one.key) if isinstance(one, ProcessDump) else None for one in self._all]

    def note(self, image: pb.Tree, writer: SnapshotWriter) -> None:
        """Tell the series about the published snapshot."""
        if self._series and self._again:
            both = zip(self._all, image.processes, strict=True)
            tables = {taken.key: out.memory.pages for taken, out in both if isinstance(taken, ProcessDump)}
            self._series.note(writer.store, writer.known(), tables)

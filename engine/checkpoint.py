"""How a checkpoint is taken: preflight, freeze, grab, thaw, describe, write, publish.

Under the freeze only what changes is taken, and memory as a copy-on-write snapshot; parsing, hashing and writing come
after the thaw. When the tree is to stop or to die it stays frozen instead until its image is published, so that nothing
it does after the snapshot is lost: a failed dump never costs the job.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Literal, TypeVar

from torpor import cgroups, inherited, procfs, proof
from torpor.errors import CheckpointFailed, ImageDamaged, Reason, Refused, RestoreRefused, StoreError, failing
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects import (
    bundle,
    credentials,
    descriptors,
    family,
    filters,
    hosts,
    memory,
    mounts,
    sharing,
    sysv,
    sysv_messages,
    sysv_semaphores,
    tcp_keep,
    threads,
    tree,
    vmas,
)
from torpor.objects.mapped_files import MappedFiles
from torpor.objects.memory import Progress
from torpor.objects.shared_memory import SharedMemory
from torpor.objects.unchanged import Before
from torpor.rehearsal import rehearse
from torpor.remote.freeze import Frozen, LastToStop, Process, Stuck
from torpor.remote.gadgets import Gadgets
from torpor.remote.snapshot import Watch
from torpor.remote.tracer import Interruption, in_own_thread, no_collection
from torpor.remote.waits import Waits
from torpor.series import Key, Series
from torpor.store import SnapshotInfo, SnapshotReader, SnapshotWriter, Store
from torpor.taken import HiddenFromFork, SnapshotLost, TakenProcess, TakenZombie
from torpor.workers import Workers

Then = Literal["run", "stop", "kill"]
Outside = Literal["refuse", "reset"]
Tcp = Literal["reset", "keep"]
T = TypeVar("T")

FREEZE_SECONDS = 5.0
"""How long a thread may take to stop: one in an uninterruptible call does not."""
HOLDS = (0.05, 0.1, 0.25, 1.0)
"""Seconds that all others stand still for a thread in an uninterruptible call, at each try."""
_LOOKS = 3
"""How often the preflight looks at a tree before it believes what it saw: the tree runs, and what is said of a thing
that comes or goes at the same time may be false."""
PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Seconds that the tree runs on before it is tried again, when what it was refused for may have passed."""
_HIDDEN = "some of its memory is hidden from a fork (MADV_DONTFORK, MADV_WIPEONFORK, huge pages)"
_GADGETS = Gadgets()


@inherited.raised_descriptor_limit()
def checkpoint(
    pid: int,
    *,
    store: Store | str | os.PathLike[str] | None = None,
    then: Then = "run",
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    last: LastToStop | None = None,
    outside: Outside = "refuse",
    tcp: Tcp = "reset",
    series: Series | None = None,
    bundle_files: bool = False,
    stdio: Mapping[int, int] | None = None,
    stats: Stats | None = None,
) -> SnapshotInfo:
    """Keep the tree of processes below and including `pid` as a snapshot in a store.

    Args:
        pid: the root of the tree, in the caller's PID namespace; the PID of a `Job` means the job.
        store: a store, its directory, or None for the user's own (see `torpor.store.default_path`).
        then: what becomes of the tree when the snapshot is published: it runs on, is stopped (SIGSTOP), or is killed.
        tags: kept with the snapshot, shown by `torpor ls`.
        progress: told bytes done and bytes in all, from the threads that write.
        last: threads that are stopped after the others, so that they can get out what they hold.
        outside: what becomes of unix sockets that lead outside of the tree: the tree is refused, or they are kept as
            ones whose peer has closed. It is said here and not at the restore, as a snapshot that is listed can be
            restored.
        tcp: what becomes of TCP connections that lead outside of the tree: the restored program sees them reset, or
            they go on, once, if the tree is killed and restored as root on this host (see `torpor.objects.tcp_keep`).
        series: the earlier checkpoints of the same job: what it has not written since the last one is not read again.
        bundle_files: keep the content of mapped and open files too, for a host that lacks them.
        stdio: descriptors of the root that are copies of what its standard input, output or error (0, 1, 2) was before
            it replaced that. Those that the processes above it have as their own are found without being named.
        stats: filled in with what it cost.

    Raises:
        Refused: the tree holds something that cannot be kept, and it was not touched; or it was to be stopped or
            killed and could not be woken here: it runs on.
        CheckpointFailed: something went wrong later; the tree runs on as before.
        NotFound, NotPermitted: no such process, or not ours to trace.
        StoreError: the store cannot take it.
    """
    began = time.monotonic_ns()
    stats = stats or Stats()
    home = store if isinstance(store, Store) else Store(store)
    keep_tcp = tcp == "keep"
    if keep_tcp:
        if then != "kill":
            why = "TCP connections go on in one place only: they can be kept when the tree is killed"
            raise Refused(f"process {pid} was not saved", [Reason("the checkpoint", why, "use --then kill as well")])
        tcp_keep.require()
    if then != "run":
        proof.foresee()
    what = f"process {pid} could not be saved"
    reset_outside = outside == "reset"
    with failing(CheckpointFailed, what):
        root = tree.job_of(pid)
        still = preflight(root, reset_outside=reset_outside, series=series, stdio=stdio)
        if then != "run":
            still = "it is not to run on"
        rehearse(root)
    how = _How(then, still, last, series, reset_outside, keep_tcp, bundle_files, stdio, stats)

    def work(interruption: Interruption) -> SnapshotInfo:
        def tell(done: int, expected: int) -> None:
            interruption.check()
            if progress:
                progress(done, expected)

        def write(*, reuse: bool) -> SnapshotInfo:
            known = series.known(home.path) if series and reuse else None
            with home.writer(reading.KIND, tags or {}, reuse=reuse, known=known) as writer:
                try:
                    return _patiently(lambda: _take(root, writer, how, tell))
                except (HiddenFromFork, SnapshotLost) as error:
                    # Such memory has come since the preflight, maybe an earlier checkpoint's; or there is too little.
                    without = replace(how, still=str(error))
                    return _patiently(lambda: _take(root, writer, without, tell))

        try:
            return write(reuse=True)
        except ImageDamaged:  # what earlier snapshots wrote is not what it was, and this one counts on it
            return write(reuse=False)

    def attempt(hold: float) -> SnapshotInfo:
        nonlocal how
        how = replace(how, hold=hold)
        return in_own_thread(work)

    try:
        with failing(CheckpointFailed, what):
            return _unhindered(root, attempt)
    except ImageDamaged as error:
        raise CheckpointFailed(f"it was not ended, for what was saved cannot be read back: {error.message}") from error
    finally:
        stats.total_ns = time.monotonic_ns() - began


@dataclass
class Stats:
    """What a checkpoint cost, nanoseconds."""

    pause_ns: int = 0
    """From the first interrupt to the last detach; 0: it was stopped or killed."""
    proof_ns: int = 0
    """In which the image of a tree that was to end was held against this host (`torpor.proof`)."""
    total_ns: int = 0
    """In all."""


@dataclass(frozen=True)
class _How:
    """What was asked of a checkpoint; see there."""

    then: Then
    still: str
    """Why the tree stands still until its image is written; empty: it runs on as soon as its memory was forked."""
    last: LastToStop | None
    series: Series | None
    reset_outside: bool
    keep_tcp: bool
    bundle_files: bool
    stdio: Mapping[int, int] | None
    stats: Stats
    hold: float = HOLDS[0]
    """See `Frozen`."""


def _unhindered(root: int, act: Callable[[float], T]) -> T:
    """Freeze only while no thread stands in an uninterruptible call: it would keep all others waiting, frozen.

    Args:
        root: of the tree.
        act: is given how many seconds they may wait so, which grow: slow disks are no hung ones.

    Raises:
        Refused: one does not leave its call.
    """
    for hold in HOLDS:
        if reasons := threads.stuck(lambda: tree.tasks(root), FREEZE_SECONDS):
            raise Refused(f"process {root} cannot be stopped", reasons)
        try:
            return act(hold)
        except Stuck:
            if hold == HOLDS[-1]:
                raise
    raise AssertionError


def _patiently(act: Callable[[], T]) -> T:
    """Try again while all that is refused may be over in a moment: what is under way between processes arrives."""
    for pause in PAUSES:
        try:
            return act()
        except Refused as refused:
            if not all(reason.passing for reason in refused.reasons):
                raise
        time.sleep(pause)
    return act()


def _take(root: int, writer: SnapshotWriter, how: _How, progress: Progress) -> SnapshotInfo:
    """From the freeze to what becomes of the tree, in the thread that traces."""
    began = time.monotonic_ns()
    waits = Waits()
    waits.look(tree.tasks(root))
    with (
        no_collection() as calm,
        Frozen(root, FREEZE_SECONDS, how.last, how.hold) as frozen,
        TakenTree(frozen, waits, how.series, how.still, again=how.then == "run") as taken,
    ):
        try:
            taken.grab(reset_outside=how.reset_outside, stdio=how.stdio)
            if how.keep_tcp:
                descriptors.choose_kept(taken.descriptors)
            if taken.forked:
                frozen.thaw()
            calm.close()
            image, pages = taken.describe()
            before = taken.before if writer.base else [None] * len(pages)
            _write(image, pages, before, taken, writer, progress, bundle_files=how.bundle_files)
            taken.let_snapshots_go()
            image.timing.pause_ns = how.stats.pause_ns = frozen.pause_ns
            image.timing.total_ns = time.monotonic_ns() - began
            prove = partial(_prove, frozen, how.stats) if how.then != "run" else None
            body = image.SerializeToString()
            if too_much := reading.excess(body) or reading.excess_of_threads(image):
                raise Refused("the tree cannot be kept", [Reason("the tree", f"it has {too_much}")])
            published = writer.publish(body, _summary(image), notices=taken.notices, prove=prove)
            taken.note(image, writer)
        except StoreError:
            raise
        except Exception as error:
            # What is said of a process that was killed depends on how far its end has come, and may be anything.
            taken.check_losses(error)
            raise
        if how.then == "kill":
            with tcp_keep.Hold() as hold:
                descriptors.hold_kept(taken.descriptors, hold)
                descriptors.arm_reset(taken.descriptors)
                frozen.kill()
                hold.save(published.id)
        elif how.then == "stop":
            for process in frozen.processes.values():
                os.kill(process.pid, signal.SIGSTOP)
    return published


def _prove(frozen: Frozen, stats: Stats, reader: SnapshotReader) -> None:
    """Hold what was written of a frozen tree against this host."""
    began = time.monotonic_ns()
    standing = {tid for process in frozen.processes.values() for tid in (process.pid, *process.threads)}
    try:
        proof.prove(reader, standing)
    finally:
        stats.proof_ns = time.monotonic_ns() - began


def preflight(
    pid: int,
    *,
    reset_outside: bool = False,
    series: Series | None = None,
    stdio: Mapping[int, int] | None = None,
) -> str:
    """Find what cannot be kept, with nothing frozen yet. What may pass by itself is for the freeze to judge.

    Of a process that was kept before in a series the mappings are not looked at again, which for a thousand of them
    takes longer than all the rest: they are judged when it has been frozen.

    Args:
        pid: the root of the tree.
        reset_outside: unix sockets that lead outside of the tree are kept, as ones whose peer has closed.
        series: the earlier checkpoints of the tree.
        stdio: as for `checkpoint`.

    Returns:
        Why the memory is to be read while the processes stand still, in words; empty: forks of them will do.

    Raises:
        Refused: with every reason at once.
        NotFound, NotPermitted: no such process, or not ours to trace.
    """
    survey = partial(descriptors.survey, reset_outside=reset_outside, stdio=stdio)
    standing: set[Reason] | None = None
    for _ in range(_LOOKS):
        seen = tree.walk(pid)
        reasons, of_descriptors, forkable = _look(seen, series, survey)
        # Of descriptors only what every look shows counts: under the freeze each is judged once more.
        standing = set(of_descriptors) if standing is None else standing.intersection(of_descriptors)
        reasons += [reason for reason in of_descriptors if reason in standing]
        if all(reason.passing for reason in reasons):
            return cgroups.shortage(dict(_private(seen))) if forkable else _HIDDEN
    raise Refused(f"{seen[0].name} cannot be kept", reasons)


def _private(seen: Sequence[tree.Seen]) -> Iterator[tuple[int, int]]:
    """The bytes of private memory of each living process, by PID."""
    for process in seen:
        if size := process.status.get(b"RssAnon"):
            yield process.pid, int(size.split()[0]) << 10


def _look(
    seen: list[tree.Seen], series: Series | None, survey: Callable[[Sequence[int]], list[Reason]]
) -> tuple[list[Reason], list[Reason], bool]:
    """Why processes and their memory cannot be kept, and why descriptors; whether forks will show the memory."""
    reasons = tree.refuse(seen)
    if reasons:
        return reasons, [], False
    forkable = True
    for process in seen:
        try:
            reasons += credentials.refuse(process.name, process.status)
            reasons += threads.refuse(process.name, process.pid)
            if series and series.has(Key(process.pid, process.stat.start_time)):
                continue
            found = procfs.flagged_mappings(process.pid)
            reasons += memory.refuse(process.name, process.pid, found)
            reasons += vmas.refuse(process.name, process.pid, found)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended: no matter, the freeze takes what is there then
        except PermissionError as error:
            if procfs.is_ending(process.pid, process.pid):
                continue
            raise tree.permitted(error, process.pid) from None
        forkable = forkable and not any(map(vmas.hides_from_fork, found))
    living = [process.pid for process in seen if not process.zombie]
    reasons += [*sharing.refuse(living), *filters.refuse(living), *sysv.refuse(living)]
    try:
        of_descriptors = survey(living)
    except (FileNotFoundError, ProcessLookupError):
        if not any(procfs.is_ending(pid, pid) for pid in living):
            raise
        of_descriptors = []  # one ended, as above
    return reasons, of_descriptors, forkable


class TakenTree:
    """A frozen tree, grabbed and described. A context manager: leaving it ends the snapshots of its memory."""

    def __init__(self, frozen: Frozen, waits: Waits, series: Series | None, still: str, *, again: bool) -> None:
        """
        Args:
            frozen: the tree.
            waits: what its threads wait in.
            series: its earlier checkpoints.
            still: why it stands still until its image is written; empty: its memory is forked.
            again: it will run on, and another checkpoint of the series may follow.
        """
        self.frozen = frozen
        self._series = series
        self._again = again
        self._before: dict[Key, Before] = {}
        self._still = still
        self.shared = SharedMemory()
        self.files: MappedFiles | None = None
        self.descriptors: descriptors.GrabbedDescriptors
        self.notices: list[str] = []
        """What whoever wakes it will not find as it was, and what was particular about the save; a sentence each."""
        self._all: list[TakenProcess | TakenZombie] = []
        self._parents: dict[int, int] = {}
        self._waits = waits
        self._semaphores: list[sysv_semaphores.Set] = []
        self._queues: list[sysv_messages.Queue] = []
        self._realtime_ns = 0
        self._pool = Workers(1, "torpor-walk")

    def __enter__(self) -> TakenTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for process in self._living():
            process.abandon()
        if self.files:
            self.files.close()

    def let_snapshots_go(self) -> None:
        """All memory is read: let its snapshots die while the image is published."""
        for taken in self._living():
            if taken.snapshot:
                taken.snapshot.let_go()

    @property
    def forked(self) -> bool:
        """Whether every process's memory is in a snapshot, so that the tree may run on."""
        return not self._still

    def check_losses(self, error: Exception) -> None:
        """Find out whether what went wrong did so because a process that is still needed has ended.

        Raises:
            CheckpointFailed: one of the tree.
            SnapshotLost: a snapshot.
        """
        living = self._living()
        # Also of a tree that runs again: of who has a descriptor, say, something is asked when it is described.
        for process in chain(self.frozen.processes.values(), (taken.process for taken in living)):
            if not process.zombie and procfs.is_ending(process.pid, process.pid):
                raise CheckpointFailed(f"{process.name} ended during the checkpoint") from error
        for taken in living:
            if taken.snapshot and taken.snapshot.needed and procfs.is_ending(taken.memory_pid, taken.memory_pid):
                why = f"the snapshot of {taken.process.name} was killed, perhaps for want of memory"
                raise SnapshotLost(why) from error

    def _living(self) -> list[TakenProcess]:
        return [taken for taken in self._all if isinstance(taken, TakenProcess)]

    def grab(self, *, reset_outside: bool, stdio: Mapping[int, int] | None) -> None:
        """Take what changes; every process's calls run at the same time."""
        self._realtime_ns = time.time_ns()
        for process in self.frozen.processes.values():
            self._parents[process.pid] = process.parent.pid if process.parent else 0
            if process.zombie:
                self._all.append(TakenZombie(process))
                continue
            taken = TakenProcess(process, _GADGETS, self._waits)
            self._all.append(taken)
            taken.begin(self._stopped_children(process))
        stats = {taken.pid: taken.texts.stat for taken in self._all}
        self.descriptors = descriptors.grab(list(stats), reset_outside=reset_outside, stdio=stdio, stats=stats)
        for file in descriptors.memory_files(self.descriptors):
            self.shared.grab_file(file)
        for taken in self._living():
            taken.listen()
            maps = list(map(self.shared.names.lasting, taken.injection.maps))
            self.shared.grab_mapped(taken.pid, maps, taken.ask)
            if self.descriptors.small:
                self.descriptors.small.take_mapped(maps)
        self._take_sysv()
        self._take_memory()
        for taken in self._living():
            taken.leave()

    def _take_sysv(self) -> None:
        """Take the semaphores and message queues of System V that are the tree's."""
        living = self._living()
        root = living[0]
        if sysv.is_apart(root.pid):
            found = sysv.find_all(root.ask)
        else:
            waits = chain.from_iterable(taken.calls() for taken in living)
            found = sysv.find([taken.pid for taken in living], waits)
        askers = {taken.own_pid: taken.ask for taken in living}
        self._semaphores, problems = sysv_semaphores.grab(found.sets, askers)
        self._queues, more = sysv_messages.grab(found.queues, root.ask)
        name = root.process.name
        found.reasons += [Reason(name, why) for why in (*problems, *more)]
        for process in [taken.process for taken in living] if found.sets else []:
            found.reasons += sysv_semaphores.own(process.name, process.pid, list(process.threads))
        if found.reasons:
            raise Refused(f"{name} cannot be kept", found.reasons)

    def _stopped_children(self, process: Process) -> list[int]:
        """Their PIDs in the tree's PID namespace."""
        mine = (child for child in self.frozen.processes.values() if child.stopped and child.parent is process)
        return [tree.own_pid(child.pid) for child in mine]

    def _take_memory(self) -> None:
        """Fork it, if it may be forked, and tell what was written since the last checkpoint of the series."""
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
                "the kernel did not let it be forked: the limits are of processes (ulimit -u, pids.max) or memory"
            )
        for taken in living:
            if self.forked:
                taken.walk(self._pool)
            else:
                taken.end_snapshot()

    def _unforkable(self) -> str:
        """Why the tree cannot be forked, in words."""
        parents = set(self._parents.values())
        for taken in self._living():
            if taken.adopts_orphans and taken.pid in parents:
                return f"{taken.process.name} adopts orphans, and would a snapshot of a process below it"
            if taken.locks_memory:
                return f"{taken.process.name} has locked memory, which a fork would not show"
        return ""

    def _watch(self, taken: TakenProcess) -> Watch | None:
        """What is to be done with a userfaultfd of a process; None: no need of one."""
        series = self._series
        if series is None or not self._again or not series.lacks(taken.key):
            return None
        return lambda fd: series.watch(taken.key, fd, taken.private)

    def describe(self) -> tuple[pb.Tree, list[memory.Ranges]]:
        """The image without its pages, and for each process the ranges whose pages are to be stored.

        Raises:
            Refused: something that cannot be kept came up after the preflight.
        """
        image = pb.Tree()
        files = self.files = MappedFiles(image)
        for living in self._living():
            self.shared.note_system_v(living.told())
        self.shared.describe(image)
        for semaphores in self._semaphores:
            sysv_semaphores.describe(semaphores, image.semaphores.add())
        for queue in self._queues:
            sysv_messages.describe(queue, image.queues.add())
        own_pids = {taken.pid: taken.own_pid for taken in self._all}
        pages: list[memory.Ranges] = []
        for taken in self._all:
            above = self._parents[taken.pid]
            parent = own_pids[above] if above else tree.outside_parent(taken.texts)
            if isinstance(taken, TakenZombie):
                tree.describe_zombie(taken.texts, parent, image.processes.add())
                pages.append(memory.Ranges(taken.pid, [], []))
            else:
                pages.append(taken.describe(parent, image, files, self.shared))
        told = {pid for taken in self._living() for pid in taken.told_stops()}
        for process in image.processes:
            process.stop_told = process.stopped and process.pid in told
        try:
            family.arrange(image, family.UNKNOWN_PID)
        except RestoreRefused as error:
            raise Refused("the tree cannot be kept: there would be no way to build it", error.reasons) from None
        descriptors.describe(self.descriptors, image, self.shared.index)
        self.notices += descriptors.notices(self.descriptors)
        if self._still and self._again:
            self.notices.append(f"it stood still until it was written: {self._still}")
        mounts.describe(image, self._living()[0].memory_pid)  # a snapshot outlives its process
        root = self._living()[0]
        xstate = next(iter(root.injection.xstates.values()))
        hosts.describe(image, root.texts.status, xstate, self._realtime_ns, root.clocks())
        return image, pages

    @property
    def before(self) -> list[Before | None]:
        """What is known of each process from the last snapshot of the series, in the order of the image."""
        return [self._before.get(one.key) if isinstance(one, TakenProcess) else None for one in self._all]

    def note(self, image: pb.Tree, writer: SnapshotWriter) -> None:
        """Tell the series of the snapshot that was published."""
        if self._series and self._again:
            both = zip(self._all, image.processes, strict=True)
            tables = {taken.key: out.memory.pages for taken, out in both if isinstance(taken, TakenProcess)}
            self._series.note(writer.store, writer.known(), tables)


def _write(
    image: pb.Tree,
    pages: Sequence[memory.Ranges],
    before: Sequence[Before | None],
    taken: TakenTree,
    writer: SnapshotWriter,
    progress: Progress,
    *,
    bundle_files: bool,
) -> None:
    """Write all pages to the store and list them in the image."""
    with memory.PageWriter(writer, progress) as out:
        gone = taken.files.gone if taken.files else {}
        bundle.store(image, gone, taken.descriptors.small or (), out, everything=bundle_files)
        cuts = [own.cut(was) for own, was in zip(pages, before, strict=True)]  # first of all: the sum is to be known
        out.expect(sum(end - start for cut in cuts for start, end in cut.dirty))
        for process, own, cut, was in zip(image.processes, pages, cuts, before, strict=True):
            out.store_private(own, cut, was, process.memory.pages)
        for segment in taken.shared.segments.values():
            out.store_shared(segment, image.shared[segment.index].pages)


def _summary(image: pb.Tree) -> str:
    root = image.processes[0]
    name = root.threads[0].name.decode(errors="replace")
    others = len(image.processes) - 1
    return f"{name} (PID {root.pid})" + (f" and {others} more" if others else "")

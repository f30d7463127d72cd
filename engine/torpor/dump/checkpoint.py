"""How a checkpoint is taken: preflight, freeze, grab, thaw, describe, write, publish.

Under the freeze only what changes is taken, and memory as a copy-on-write snapshot; parsing, hashing and writing come
after the thaw. When the tree is to stop or to die it stays frozen instead until its image is published, so that nothing
it does after the snapshot is lost: a failed dump never costs the job.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

from torpor import procfs
from torpor.dump import cgroups, proof
from torpor.dump.process_dump import HiddenFromFork, SnapshotLost
from torpor.dump.seccomp_dry_run import dry_run
from torpor.dump.series import Key, Series
from torpor.dump.tree_dump import TreeDump
from torpor.errors import CheckpointFailed, ImageDamaged, Reason, Refused, StoreError, failing
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.fds import descriptors
from torpor.objects.memory import process_memory, vmas
from torpor.objects.memory.incremental import Before
from torpor.objects.memory.own_pages import PageWriter, Progress, Ranges
from torpor.objects.paths import bundle
from torpor.objects.process import daemons, seccomp, sharing, threads, tree
from torpor.objects.registry import PROCESS_PARTS, THREAD_PARTS
from torpor.objects.sockets import tcp_repair
from torpor.objects.sysv import segments
from torpor.remote.freeze import Frozen, LastToStop, Stuck
from torpor.remote.tracer import Interruption, in_own_thread, no_collection
from torpor.remote.waits import Waits
from torpor.store import SnapshotInfo, SnapshotReader, SnapshotWriter, Store
from torpor.util import inherited

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
PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds that the tree runs on before it is tried again, when what it was refused for may have passed."""
_MOVED = (errno.EFAULT, errno.EIO)
"""What reading memory says that is mapped no longer: process_vm_readv(2), /proc/PID/mem."""
_HIDDEN = "some of its memory is hidden from a fork (MADV_DONTFORK, MADV_WIPEONFORK, huge pages)"


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
            they go on, once, if the tree is killed and restored as root on this host (see
            `torpor.objects.sockets.tcp_repair`).
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
        tcp_repair.require()
    if then != "run":
        proof.foresee()
    what = f"process {pid} could not be saved"
    reset_outside = outside == "reset"
    with failing(CheckpointFailed, what):
        root = tree.job_of(pid)
        still = preflight(root, reset_outside=reset_outside, series=series, stdio=stdio)
        if then != "run":
            still = "it is not to run on"
        dry_run(root)
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
    """In which the image of a tree that was to end was held against this host (`torpor.dump.proof`)."""
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
        Frozen(root, FREEZE_SECONDS, how.last, how.hold, partial(daemons.of, root)) as frozen,
        TreeDump(frozen.processes, waits, how.series, how.still, again=how.then == "run") as taken,
    ):
        try:
            taken.grab(reset_outside=how.reset_outside, stdio=how.stdio)
            if how.keep_tcp:
                descriptors.choose_kept(taken.descriptors)
            if taken.forked:
                frozen.thaw()
            calm.close()
            image, pages = taken.describe()
            taken.notices += daemons.notices(root)
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
            with tcp_repair.Hold() as hold:
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


def _preflight_parts(process: tree.Seen) -> Iterator[Reason]:
    """What of the parts of a process and of its threads cannot be kept."""
    for part in PROCESS_PARTS:
        for why, advice in part.preflight(process.pid, process.status):
            yield Reason(process.name, why, advice)
    of_threads = {why for tid in procfs.threads(process.pid) for part in THREAD_PARTS for why in part.preflight(tid)}
    yield from (Reason(f"{process.name}, a thread", why) for why in sorted(of_threads))


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
            reasons += _preflight_parts(process)
            if series and series.has(Key(process.pid, process.stat.start_time)):
                continue
            found = procfs.flagged_mappings(process.pid)
            reasons += process_memory.refuse(process.name, process.pid, found)
            reasons += vmas.refuse(process.name, process.pid, found)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended: no matter, the freeze takes what is there then
        except PermissionError as error:
            if procfs.is_ending(process.pid, process.pid):
                continue
            raise tree.permitted(error, process.pid) from None
        except OSError as error:
            if error.errno not in _MOVED:
                raise
            continue  # as much: it called execve or unmapped what was looked at
        forkable = forkable and not any(map(vmas.hides_from_fork, found))
    living = [process.pid for process in seen if not process.zombie]
    of_descriptors: list[Reason] = []
    try:
        reasons += [*sharing.refuse(living), *seccomp.refuse(living), *segments.refuse(living)]
        of_descriptors = survey(living)
    except (FileNotFoundError, ProcessLookupError):
        if not any(procfs.is_ending(pid, pid) for pid in living):
            raise
    return reasons, of_descriptors, forkable


def _write(
    image: pb.Tree,
    pages: Sequence[Ranges],
    before: Sequence[Before | None],
    taken: TreeDump,
    writer: SnapshotWriter,
    progress: Progress,
    *,
    bundle_files: bool,
) -> None:
    """Write all pages to the store and list them in the image."""
    with PageWriter(writer, progress) as out:
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

"""How a checkpoint is taken: preflight, freeze, grab, thaw, describe, write, publish.

Under the freeze only changing state is read, and memory is forked as a copy-on-write snapshot. Parsing, hashing and
writing come after the thaw. A tree that is to stop or end stays frozen until its image is published, so that it does
nothing that the image lacks. A failed dump never costs the job.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, Literal, TypeVar, cast

from torpor import metrics, procfs
from torpor.dump import cgroups, denied, self_report
from torpor.dump.patience import patiently
from torpor.dump.process_dump import HiddenFromFork, SnapshotLost
from torpor.dump.seccomp_dry_run import dry_run
from torpor.dump.series import Key, Series
from torpor.dump.tree_dump import TreeDump
from torpor.errors import CheckpointFailed, ImageDamaged, Reason, Refused, StoreError, failing
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.fds import databases, descriptors, outsiders
from torpor.objects.fds.databases import InTransaction
from torpor.objects.memory import process_memory, vmas
from torpor.objects.memory.incremental import Before
from torpor.objects.memory.own_pages import PageWriter, Progress, Ranges
from torpor.objects.paths import bundle, small_files
from torpor.objects.paths.bundle import Along, Changing
from torpor.objects.paths.file_content import Buffers
from torpor.objects.process import daemons, seccomp, sharing, texts, threads, tree
from torpor.objects.registry import PROCESS_PARTS, THREAD_PARTS, TREE_PARTS
from torpor.objects.sockets import tcp_repair
from torpor.remote import killing
from torpor.remote.freeze import Frozen, LastToStop, Stuck
from torpor.remote.tracer import Interruption, in_own_thread, no_collection
from torpor.remote.waits import Waits
from torpor.store import SnapshotInfo, SnapshotReader, SnapshotWriter, Store
from torpor.util import choices, inherited, settings
from torpor.util.job_names import job_name
from torpor.util.workers import Workers

Then = Literal["run", "stop", "kill"]
Outside = Literal["refuse", "reset"]
Tcp = Literal["reset", "keep"]
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., SnapshotInfo])

FREEZE_SECONDS = 5.0
"""How long a thread may take to stop. A thread in an uninterruptible call does not stop."""
HOLDS = (0.05, 0.1, 0.25, 1.0)
"""Seconds, one entry per try, that all other threads stay frozen to wait for one in an uninterruptible call."""
_LOOKS = 3
"""How often the preflight looks at a tree before it refuses it. The tree runs meanwhile, so a single look may misjudge
an object that appears or disappears at that moment."""
_MOVED = (errno.EFAULT, errno.EIO)
"""Errors of process_vm_readv(2) and /proc/PID/mem for memory that is no longer mapped."""
_HIDDEN = "some of its memory is hidden from a fork (MADV_DONTFORK, MADV_WIPEONFORK, huge pages)"


def _counted(save: F) -> F:
    """Count each call for the metrics."""

    @wraps(save)
    def counted(*arguments: Any, stats: Stats | None = None, **options: Any) -> SnapshotInfo:
        stats = stats or Stats()
        with metrics.counted_failures("checkpoint"):
            info: SnapshotInfo = save(*arguments, stats=stats, **options)
        metrics.saved(stats.total_ns / 1e9, stats.pause_ns / 1e9, info.size, info.written)
        return info

    return cast(F, counted)


@_counted
@inherited.raised_limits()
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
    with_files: Sequence[str] = (),
    stdio: Mapping[int, int] | None = None,
    limit: int | None = None,
    stats: Stats | None = None,
) -> SnapshotInfo:
    """Save a process and all its descendants as a snapshot in a store.

    Args:
        pid: the root of the tree, in the caller's PID namespace; the PID of a `Job` means the job.
        store: a store, its directory, or None for the user's own (see `torpor.store.default_path`).
        then: what happens to the tree once the snapshot is published: it runs on, is stopped (SIGSTOP), or is killed.
        tags: stored with the snapshot and shown by `torpor ls`.
        progress: called with the bytes done and the bytes in total, from the threads that write.
        last: threads to stop after all others, so that they can send what they still hold.
        outside: how to treat unix sockets that are connected to processes outside of the tree: refuse the checkpoint,
            or save them as if the peer had closed. It is chosen here and not at the restore, since every listed
            snapshot can be restored.
        tcp: how to treat TCP connections that lead outside of the tree: the restored program sees them reset, or they
            continue, once, if the tree is killed and then restored as root on this host (see
            `torpor.objects.sockets.tcp_repair`).
        series: the earlier checkpoints of the same job; memory that was not written since the last one is not read
            again.
        bundle_files: save the content of mapped and open files too, for a host that lacks them.
        with_files: patterns (fnmatch) of files that the tree has open or mapped for writing, whose content is saved, so
            that `restore` can bring it back. Without a slash they are for the last part of a path. If one of them is
            changed while it is read, the tree stands still until all are.
        stdio: descriptors of the root process that are copies of its original standard input, output or error (0, 1,
            2), if it has replaced those. Originals that are the ancestors' own standard streams are found without this.
        limit: how many bytes per second to write to the store at most; 0: any amount; None: as it is set (`torpor
            config`).
        stats: filled in with the costs.

    Raises:
        Refused: the tree has something that cannot be kept, and was not touched; or it was to stop or end but could
            not be woken here, and runs on.
        CheckpointFailed: something failed later; the tree runs on as before.
        NotFound, NotPermitted: the process does not exist, or this user may not trace it.
        StoreError: the snapshot cannot be written to the store, or the directory has other files and is no store.
        SettingError: a configuration file is wrong.
        ValueError: `then`, `outside` or `tcp` has a value that it does not accept.
        KeyboardInterrupt: somebody pressed Ctrl-C; the tree runs on. If the snapshot had been published by then, it is
            the argument of the exception.
    """
    for argument, value, words in (("then", then, Then), ("outside", outside, Outside), ("tcp", tcp, Tcp)):
        choices.check(argument, value, words)
    began = time.monotonic_ns()
    stats = stats or Stats()
    home = store if isinstance(store, Store) else Store(store)
    keep_tcp = tcp == "keep"
    if keep_tcp:
        tcp_repair.require()
        if then != "kill":
            why = "TCP connections can continue in one place only, so they can be kept only if the tree is killed"
            raise Refused(f"process {pid} was not saved", [Reason("the checkpoint", why, "use --then kill as well")])
    what = f"process {pid} could not be saved"
    reset_outside = outside == "reset"
    small_files.limit()  # before the freeze, because it may read a configuration file
    rate = int(settings.get("limit").value) if limit is None else limit
    with denied.explained(what), failing(CheckpointFailed, what):
        if then != "run":
            from torpor.dump import proof  # noqa: PLC0415  it needs the restorer, other saves do not

            proof.prove_abilities()
        root = tree.job_of(pid)
        still = preflight(root, reset_outside=reset_outside, series=series, stdio=stdio)
        if then != "run":
            still = "it will be stopped or killed"
        dry_run(root)
    stats.look_ns = time.monotonic_ns() - began
    if not isinstance(store, Store):
        home.create()
    command = procfs.command_line(root)  # not under the freeze: it only names the job
    taken_along = Along(bundle_files, tuple(os.path.abspath(one) if "/" in one else one for one in with_files))
    how = _How(command, home.path, then, still, last, series, reset_outside, keep_tcp, taken_along, stdio, stats)

    def work(interruption: Interruption) -> SnapshotInfo:
        def tell(done: int, expected: int) -> None:
            interruption.check()
            if progress:
                progress(done, expected)

        def write(*, reuse: bool) -> SnapshotInfo:
            known = series.known(home.path) if series and reuse else None
            with home.writer(reading.KIND, tags or {}, reuse=reuse, known=known, rate=rate) as writer:
                return _settled(root, writer, how, tell)

        try:
            return write(reuse=True)
        except ImageDamaged:  # blocks of earlier snapshots that this one reuses are damaged
            return write(reuse=False)

    def attempt(hold: float) -> SnapshotInfo:
        nonlocal how
        how = replace(how, hold=hold)
        return in_own_thread(work)

    try:
        with denied.explained(what), failing(CheckpointFailed, what):
            return _unhindered(root, attempt)
    except ImageDamaged as error:
        raise CheckpointFailed(
            f"the tree was not killed, because its snapshot cannot be read back: {error.message}"
        ) from error
    finally:
        stats.total_ns = time.monotonic_ns() - began


def _settled(root: int, writer: SnapshotWriter, how: _How, tell: Progress) -> SnapshotInfo:
    """Save the tree. Wait for transactions to end, but not for long; keep the tree frozen if it cannot be forked."""
    while True:
        try:
            return patiently(root, partial(_take, root, writer, how, tell))
        except InTransaction:
            how = replace(how, in_transaction=True)
        except (HiddenFromFork, SnapshotLost, Changing) as error:
            # The tree has got unforkable memory since the preflight (or an earlier checkpoint), memory is short, or a
            # file that is to be saved changes.
            if how.still:
                raise
            how = replace(how, still=str(error))


@dataclass
class Stats:
    """What a checkpoint cost, in nanoseconds."""

    look_ns: int = 0
    """To find out whether it can be saved, before anything is frozen."""
    pause_ns: int = 0
    """From the first interrupt to the last detach, also of a tree that stayed frozen until it was written; 0 if
    the tree was stopped or killed."""
    write_ns: int = 0
    """To describe what there was, and to read its memory and write it to the store."""
    publish_ns: int = 0
    """To sync the snapshot to disk and to show it in the store."""
    proof_ns: int = 0
    """Time to check that a tree that was to end can be restored on this host (`torpor.dump.proof`)."""
    total_ns: int = 0
    """The whole checkpoint."""


@dataclass(frozen=True)
class _How:
    """The options of a checkpoint, as `checkpoint` documents them."""

    command: Sequence[bytes]
    """The command line of the tree's root."""
    directory: str
    """Of the store: for what there is no memory."""
    then: Then
    still: str
    """Why the tree stays frozen until its image is written; empty if it runs on once its memory is forked."""
    last: LastToStop | None
    series: Series | None
    reset_outside: bool
    keep_tcp: bool
    along: Along
    stdio: Mapping[int, int] | None
    stats: Stats
    hold: float = HOLDS[0]
    """See `Frozen`."""
    in_transaction: bool = False
    """Whether to save the tree even in the middle of a database transaction."""


def _unhindered(root: int, act: Callable[[float], T]) -> T:
    """Freeze only while no thread is in an uninterruptible call: all others would wait for it, frozen.

    Args:
        root: the PID of the tree's root.
        act: called with the seconds that the others may wait frozen. They grow with each try, because a slow disk is
            not a hung one.

    Raises:
        Refused: a thread does not leave its uninterruptible call.
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


def _take(root: int, writer: SnapshotWriter, how: _How, progress: Progress) -> SnapshotInfo:
    """Do everything from the freeze to the stop or kill, in the tracing thread."""
    began = time.monotonic_ns()
    waits = Waits()
    buffers = Buffers(cgroups.room(), how.directory)

    def look() -> None:
        waits.look(tree.tasks(root))

    with (
        no_collection() as calm,
        Workers(1) as pool,  # before the freeze: on a busy host it takes a while until a thread runs
        Frozen(root, FREEZE_SECONDS, how.last, how.hold, partial(daemons.seen, root), look) as frozen,
        TreeDump(frozen.processes, waits, how.series, how.still, buffers, again=how.then == "run", pool=pool) as taken,
    ):
        try:
            taken.grab(reset_outside=how.reset_outside, stdio=how.stdio)
            if under_way := databases.transactions(taken.descriptors):
                if not how.in_transaction:
                    raise InTransaction("the tree was not saved", under_way)
                taken.notices += map(databases.notice, under_way)
            if how.keep_tcp:
                descriptors.choose_for_repair(taken.descriptors)
            if taken.forked:
                frozen.thaw()
            calm.close()
            writing = time.monotonic_ns()
            image, pages = taken.describe()
            taken.notices += daemons.notices(root)
            _of_outsiders(outsiders.find(taken.descriptors, taken.shared.nameless), taken, how.then)
            before = taken.before if writer.base else [None] * len(pages)
            _write(image, pages, before, taken, writer, progress, how.along)
            taken.let_snapshots_go()
            publishing = time.monotonic_ns()
            how.stats.write_ns = publishing - writing
            until_now = time.monotonic_ns() - frozen.started if how.then == "run" else 0
            image.timing.pause_ns = frozen.pause_ns or until_now
            image.timing.total_ns = time.monotonic_ns() - began
            if how.then == "kill":
                killing.check(frozen.processes)
            differing: list[str] = []
            prove = partial(_prove, frozen, how.stats, differing) if how.then != "run" else None
            body = image.SerializeToString()
            if too_much := reading.excess(body) or reading.excess_of_threads(image):
                raise Refused("the tree cannot be kept", [Reason("the tree", f"it has {too_much}")])
            published = writer.publish(body, _summary(image, how.command), notices=taken.notices, prove=prove)
            published = replace(published, notices=(*published.notices, *differing))
            how.stats.publish_ns = time.monotonic_ns() - publishing - how.stats.proof_ns
            taken.note(image, writer)
        except StoreError:
            raise
        except Exception as error:
            # If a process was killed meanwhile, any error may result, depending on how far its exit has come.
            taken.raise_if_lost(error)
            raise
        if how.then == "kill":
            with tcp_repair.Hold() as hold:
                descriptors.hold_for_repair(taken.descriptors, hold)
                descriptors.arm_reset(taken.descriptors)
                wrong = killing.kill(frozen.processes)
                hold.save(published.id)
            published = replace(published, notices=(*published.notices, *wrong))
        elif how.then == "stop":
            for process in frozen.processes.values():
                os.kill(process.pid, signal.SIGSTOP)
    how.stats.pause_ns = frozen.pause_ns if how.then == "run" else 0
    return published


def _of_outsiders(found: list[outsiders.Shared], taken: TreeDump, then: Then) -> None:
    """Add notices about what outside processes share with the tree. Do not kill it if they would prevent its wake."""
    if then == "kill" and (reasons := outsiders.reasons(found)):
        raise Refused("the tree was not killed, because it could not be woken here", reasons)
    taken.notices += [*outsiders.notices(found), *outsiders.unread_input(taken.descriptors)]


def _prove(frozen: Frozen, stats: Stats, notices: list[str], reader: SnapshotReader) -> None:
    """Check that the snapshot of a frozen tree could be restored on this host, and note what would not be as before."""
    from torpor.dump import proof  # noqa: PLC0415  as above

    began = time.monotonic_ns()
    own = {tid for process in frozen.processes.values() for tid in (process.pid, *process.threads)}
    standing = own.union(daemons.inits(frozen.root))  # torpor-init exits as the job exits
    try:
        notices += proof.prove(reader, standing)
    finally:
        stats.proof_ns = time.monotonic_ns() - began


def preflight(
    pid: int,
    *,
    reset_outside: bool = False,
    series: Series | None = None,
    stdio: Mapping[int, int] | None = None,
) -> str:
    """Find what cannot be kept, before anything is frozen. Conditions that may pass are left to the freeze.

    If a process was saved before in a series, its mappings are checked under the freeze instead: for a thousand
    mappings that takes longer than all other checks.

    Args:
        pid: the root of the tree.
        reset_outside: save unix sockets that are connected to processes outside as if the peer had closed.
        series: the earlier checkpoints of the tree.
        stdio: as for `checkpoint`.

    Returns:
        Why the memory must be read while the processes are frozen; empty if they can be forked.

    Raises:
        Refused: something cannot be kept; the error lists every reason.
        NotFound, NotPermitted: the process does not exist, or this user may not trace it.
    """
    survey = partial(descriptors.survey, reset_outside=reset_outside, stdio=stdio)
    standing: set[Reason] | None = None
    for _ in range(_LOOKS):
        seen = tree.walk(pid)
        reasons, of_descriptors, forkable = _look(seen, series, survey)
        if of_descriptors and {one.pid for one in seen} != {one.pid for one in tree.walk(pid)}:
            # A process that was born during the look may have the other end.
            of_descriptors = [one for one in of_descriptors if not one.why.startswith(descriptors.OUTSIDE)]
        # Only reasons that every look shows count: descriptors are checked again under the freeze.
        standing = set(of_descriptors) if standing is None else standing.intersection(of_descriptors)
        reasons += [reason for reason in of_descriptors if reason in standing]
        if all(reason.passing for reason in reasons):
            return cgroups.shortage(dict(_private(seen))) if forkable else _HIDDEN
    raise Refused(f"{seen[0].name} cannot be kept", reasons)


def _preflight_parts(process: tree.Seen) -> Iterator[Reason]:
    """Yield what cannot be kept of the parts of a process and its threads."""
    for part in PROCESS_PARTS:
        for why, advice in part.preflight(process.pid, process.status):
            yield Reason(process.name, why, advice)
    of_threads = {why for tid in procfs.threads(process.pid) for part in THREAD_PARTS for why in part.preflight(tid)}
    yield from (Reason(f"{process.name}, a thread", why) for why in sorted(of_threads))


def _private(seen: Sequence[tree.Seen]) -> Iterator[tuple[int, int]]:
    """Yield the PID and the bytes of private memory of each living process."""
    for process in seen:
        if size := texts.private_memory(process.status):
            yield process.pid, size


def _look(
    seen: list[tree.Seen], series: Series | None, survey: Callable[[Sequence[int]], list[Reason]]
) -> tuple[list[Reason], list[Reason], bool]:
    """Return why processes and memory cannot be kept, why descriptors cannot, and whether forks show all memory."""
    reasons = tree.unsupported(seen)
    if reasons:
        return reasons, [], False
    forkable = True
    for process in seen:
        if process.zombie:
            continue  # a zombie has no memory, threads or descriptors
        try:
            reasons += _preflight_parts(process)
            if series and series.has(Key(process.pid, process.stat.start_time)):
                continue
            found = procfs.flagged_mappings(process.pid)
            reasons += process_memory.unsupported(process.name, process.pid, found)
            reasons += vmas.unsupported(process.name, process.pid, found)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended: the freeze finds what is left then
        except PermissionError as error:
            if procfs.is_ending(process.pid, process.pid):
                continue
            raise tree.permitted(error, process.pid) from None
        except OSError as error:
            if error.errno not in _MOVED:
                raise
            continue  # it called execve or unmapped memory while that was read: the freeze checks again
        forkable = forkable and not any(map(vmas.hides_from_fork, found))
    living = [process.pid for process in seen if not process.zombie]
    of_descriptors: list[Reason] = []
    try:
        reasons += [
            *sharing.unsupported(living),
            *seccomp.unsupported(living),
            *(reason for part in TREE_PARTS for reason in part.preflight([one.pid for one in seen])),
        ]
        of_descriptors = [] if self_report.is_needed() else survey(living)
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
    along: Along,
) -> None:
    """Write all pages to the store and list them in the image."""
    with PageWriter(writer, progress) as out:
        gone = taken.files.gone if taken.files else {}
        small = taken.descriptors.small
        taken.notices += bundle.store(image, gone, small, out, along, frozen=not taken.forked)
        cuts = [own.cut(was) for own, was in zip(pages, before, strict=True)]  # all first: the total must be known
        out.expect(sum(end - start for cut in cuts for start, end in cut.dirty))
        for process, own, cut, was in zip(image.processes, pages, cuts, before, strict=True):
            out.store_private(own, cut, was, process.memory.pages)
        for segment in taken.shared.segments.values():
            out.store_shared(segment, image.shared[segment.index].pages)


def _summary(image: pb.Tree, words: Sequence[bytes]) -> str:
    root = image.processes[0]
    name = job_name(root.threads[0].name, words)
    others = len(image.processes) - 1
    return f"{name} (PID {root.pid})" + (f" and {others} more" if others else "")

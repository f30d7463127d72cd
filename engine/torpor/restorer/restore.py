"""How a restore is done: validate, open, plan, launch, build, verify, release.

An image is compiled to a plan (`plan`), which runs inside blank processes (`execution`) below a torpor-init
(`capsule`). If a step fails, the half-built tree is killed, the image is untouched, and the restore can be tried again.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from math import inf
from typing import Literal, TypeVar

from torpor import metrics, procfs
from torpor.dump.series import Key, Series
from torpor.errors import RestoreFailed, RestoreRefused, TorporError, failing
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.fds import descriptors, ptys
from torpor.objects.memory import mapped_files, shared_memory
from torpor.objects.memory.address_space import Sources
from torpor.objects.memory.mapped_code import MappedCode
from torpor.objects.paths import bundle, directories
from torpor.objects.paths.opener import Opener, Openers
from torpor.objects.paths.rollback import Rollback
from torpor.objects.process import birth_order, credentials, daemons, host_requirements
from torpor.objects.process.host_requirements import Cpu
from torpor.objects.sockets import port_remapping
from torpor.probe import probe
from torpor.remote.blank import PidTaken
from torpor.remote.pid_allocation import WALK_SECONDS, Walk
from torpor.remote.tracer import no_collection
from torpor.remote.written import WriteWatch
from torpor.restorer import capsule, pid_files, surroundings, verification
from torpor.restorer.capsule import Namespaces, Setting, WaitingInit
from torpor.restorer.execution import Builder, Filled
from torpor.restorer.integrity import Verification
from torpor.restorer.job import Job
from torpor.restorer.plan import Here, RestorerFds, make
from torpor.restorer.surroundings import Way
from torpor.restorer.validation import living, of_one_job, patiently, validate
from torpor.restorer.walk import Walker
from torpor.store import KnownBlocks, SnapshotInfo, SnapshotReader, Store, default_path
from torpor.util import choices, inherited, settings

K = TypeVar("K")
Progress = Callable[[int, int], None]
"""Called with the bytes of memory filled so far and in total."""
Files = Literal["as-they-were", "as-they-are", "rolled-back"]
"""Whether the tree's files must be as at the checkpoint (they may have grown), are accepted as they are, or are brought
back if the snapshot has their content."""
CAP_SYS_RESOURCE = 24
WORTH_A_WORD = 1.0
"""Seconds: a longer walk is announced."""
_OLDER = 16
"""How many earlier snapshots to try, to suggest one that can be woken."""
_ALONE = threading.Lock()
"""Held while a tree is built. Its processes inherit all descriptors of this process from the first slot on and close
the foreign ones late; these could be pipe ends of another thread's tree. So only one tree is built at a time."""


@metrics.counts_restores
@inherited.raised_limits()
def restore(
    snapshot: str | SnapshotInfo,
    *,
    store: Store | str | os.PathLike[str] | None = None,
    detach: bool = False,
    foreground: bool = False,
    stdio: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
    first: Callable[[str], bool] | None = None,
    connected: Callable[[], object] | None = None,
    ports: Mapping[int, int] | None = None,
    terminal: Callable[[pb.Pty], int] | None = None,
    files: Files = "as-they-were",
    instead_of: str | SnapshotInfo | None = None,
    series: Series | None = None,
    way: Way = "best",
    prove: bool | None = None,
    cpu: Cpu = "check",
    tell: Callable[[str], object] | None = None,
) -> Job:
    """Wake a snapshot: its processes continue where they were, with their old PIDs.

    Args:
        snapshot: what `checkpoint` returned, an id, a name, the beginning of an id, or ``latest``.
        store: a store, its directory, or None for the user's own.
        detach: whether the job must outlive this process and its terminal.
        foreground: whether `Job.foreground` alone will pass signals on to the job.
        stdio: descriptors that replace the former standard input, output and error.
        progress: called with the bytes done and the bytes in total.
        first: given a thread's name, says whether that thread runs before the others.
        connected: called by the restoring thread between those threads and the others. If it raises, the tree is
            killed.
        ports: new TCP ports of listeners by their old ones, for a second tree beside the first.
        terminal: called if the job's controlling terminal was outside of the tree, with a description of it. Returns a
            terminal that controls no session; it becomes the controlling one, and replaces the terminals in `stdio`.
        files: whether the tree's files must be as they were (they may have grown), are accepted as they are, or those
            that the tree may write are brought back if the snapshot has their content (see `checkpoint`, `with_files`).
            The files that they replace are renamed; `Job.warnings` names them.
        instead_of: a later snapshot of the same job, which was killed with it. Files that the job left in /dev/shm may
            be replaced, since that snapshot has them. If it cannot be read, none is replaced.
        series: begin this series with the snapshot: its next checkpoint reads only what the tree writes from now on.
        way: "native": among the host's processes, with all rights of the restorer; "capsule": in its own namespaces;
            "best": natively if possible, else in a capsule.
        prove: before anything runs, describe the built tree as a checkpoint would and compare it, and its memory, with
            the image. None: as it is set, by the environment variable TORPOR_PROVE or a configuration file.
        cpu: "check": refuse a processor that lacks features by which programs of the image may have chosen their code;
            "ignore": wake it there all the same. `Job.warnings` says what may happen.
        tell: called with a message before anything that takes long.

    Raises:
        RestoreRefused: this host cannot wake the snapshot now; nothing was started.
        RestoreFailed: a step failed; nothing of the tree is left, and the restore can be tried again.
        NotFound, NotPermitted: there is no such snapshot; the host forbids a capsule.
        ImageDamaged, StoreError: the snapshot cannot be read.
        ValueError: `files`, `way` or `cpu` is none of the words that it may be.
    """
    choices.check("files", files, Files)
    choices.check("way", way, Way)
    choices.check("cpu", cpu, Cpu)
    with (
        failing(RestoreFailed, "the snapshot could not be woken"),
        _stand_ins(stdio) as standard,
        _open(snapshot, store) as reader,
    ):
        image = reading.read(reader)
        if ports:
            port_remapping.move(image, ports)
        behind = patiently(lambda: _validate(image, reader, standard, files, cpu, asked=snapshot), tell)
        with Openers(image) as openers:
            of_processor = tuple(host_requirements.warnings(image, probe(), MappedCode(image, openers)))
        host_requirements.adapt(image, probe())
        later: shared_memory.Left = frozenset()
        if instead_of is not None:
            with suppress(TorporError), _open(instead_of, store) as other:
                later = shared_memory.left(reading.read(other))
        given = -1
        if terminal is not None and (lost := ptys.lost(image)) is not None:
            given = terminal(image.ptys[lost])
            standard[:] = [given if os.isatty(number) else number for number in standard]
        with _put_back(image, reader, behind) as notices:
            ways: tuple[Way, ...] = (
                ("best", "capsule") if way == "best" and not surroundings.why_no_capsule() else (way,)
            )
            for one in ways:
                setting = surroundings.setting(image, detach=detach, way=one)
                here = surroundings.here(setting)
                child = birth_order.arrange(image, here.init, here.joined).children[0].pid
                if tell is not None and setting.walk and setting.walk.seconds > WORTH_A_WORD:
                    tell(_of_walk(setting.walk))
                try:
                    with (
                        _ALONE,
                        capsule.prepare(
                            setting,
                            child,
                            base=descriptors.first_slot(image),
                            environment={daemons.BEGAN: str(image.host.began_ns)},
                        ) as waiting,
                        _root_of(waiting, setting) as root,
                        _Material(image, reader, standard, later, given, root) as material,
                        no_collection(),
                        _series(series, reader) as filled,
                    ):
                        job = _wake(
                            image,
                            reader,
                            setting,
                            here,
                            material,
                            waiting,
                            progress,
                            first,
                            connected,
                            filled,
                            foreground,
                            one,
                            bool(settings.get("prove").value) if prove is None else prove,
                        )
                        job.warnings += notices
                        job.warnings += of_processor
                        return job
                except PidTaken:  # by a process that started after the PIDs were found to be free
                    if setting.capsule or one == ways[-1]:
                        raise
            raise AssertionError("in a capsule every PID is free")


def _of_walk(walk: Walk) -> str:
    pace = f"{walk.pace.per_second:.0f} a second"
    return f"it is woken when the kernel reaches its PIDs, in about {walk.seconds:.0f} s ({walk.length} PIDs, {pace})"


def explain(
    snapshot: str | SnapshotInfo,
    *,
    store: Store | str | os.PathLike[str] | None = None,
    files: Files = "as-they-were",
    way: Way = "best",
    cpu: Cpu = "check",
) -> str:
    """Describe every system call that a restore would make here. Starts, makes and removes nothing.

    Raises:
        As `restore`.
    """
    with failing(RestoreFailed, "the restore cannot be planned"), _open(snapshot, store) as reader:
        image = reading.read(reader)
        _validate(image, reader, (0, 1, 2), files, cpu, asked=snapshot)
        here = surroundings.here(surroundings.setting(image, way=way))
        return make(image, here, RestorerFds.imagined(image, reader.blocks)).explain()


def _validate(
    image: pb.Tree, reader: SnapshotReader, stdio: Sequence[int], files: Files, cpu: Cpu, *, asked: str | SnapshotInfo
) -> Rollback | None:
    """Validate the image. If ``latest`` was asked for, suggest an earlier snapshot that can be woken."""
    try:
        return _validate_one(image, reader, stdio, files, cpu)
    except RestoreRefused as refused:
        if asked != "latest":
            raise
        home = Store(reader.info.store)
        older = takewhile(lambda info: info.id != reader.info.id, home.snapshots())
        for info in reversed([*older][-_OLDER:]):
            with suppress(TorporError), home.open(info) as one:
                if of_one_job(earlier := reading.read(one), image):
                    _validate_one(earlier, one, stdio, files, cpu)
                    where = "" if home.path == default_path() else f"--store {shlex.quote(home.path)} "
                    refused.advice = f"an earlier one can be woken: `torpor restore {where}{info.id}`"
                    break
        raise


def _validate_one(
    image: pb.Tree, reader: SnapshotReader, stdio: Sequence[int], files: Files, cpu: Cpu
) -> Rollback | None:
    behind = Rollback(reader.info.id) if files == "rolled-back" else None
    as_they_are = files == "as-they-are"
    validate(image, reader.info.id, probe(), stdio, files_as_they_are=as_they_are, behind=behind, cpu=cpu)
    return behind


def listening_ports(snapshot: str | SnapshotInfo, *, store: Store | str | os.PathLike[str] | None = None) -> set[int]:
    """Return the TCP ports on which the processes of a snapshot listen. Raises NotFound, ImageDamaged, StoreError."""
    with _open(snapshot, store) as reader:
        return port_remapping.listening(reading.read(reader))


def _open(snapshot: str | SnapshotInfo, store: Store | str | os.PathLike[str] | None) -> SnapshotReader:
    if store is None and isinstance(snapshot, SnapshotInfo):
        store = snapshot.store
    return (store if isinstance(store, Store) else Store(store)).open(snapshot)


# ----------------------------------------------------------------------------------------------- material


@contextmanager
def _stand_ins(stdio: Sequence[int]) -> Iterator[list[int]]:
    """Yield `stdio` with /dev/null for closed descriptors, whose numbers the next open(2) would reuse."""
    with ExitStack() as stack:
        given = list(stdio)
        for place, number in enumerate(given):
            try:
                os.fstat(number)
            except OSError:
                nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, nothing)
                given[place] = nothing
        yield given


@contextmanager
def _put_back(image: pb.Tree, reader: SnapshotReader, behind: Rollback | None) -> Iterator[tuple[str, ...]]:
    """Make what the tree needs under its name; remove it again if the block fails. Yields notices."""
    made = bundle.put_back(image, reader, Openers(image), behind)
    try:
        yield tuple(made.notices)
    except BaseException:
        made.remove()
        raise


@contextmanager
def _root_of(waiting: WaitingInit, setting: Setting) -> Iterator[int]:
    """Open the root directory of the tree's mount namespace; -1 if it is this process's own namespace."""
    if not setting.namespaces & Namespaces.MOUNT:
        yield -1
        return
    root = os.open(f"/proc/{waiting.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)


class _Material:
    """All descriptors that the tree is built from. A context manager: leaving it closes them."""

    def __init__(
        self,
        image: pb.Tree,
        reader: SnapshotReader,
        stdio: Sequence[int],
        later: shared_memory.Left,
        terminal: int,
        root: int,
    ) -> None:
        self._stack = ExitStack()
        self.base = descriptors.first_slot(image)
        with self._stack:
            openers = self._stack.enter_context(Openers(image, root))
            files = self._keep(mapped_files.open_all(image, reader, self.base, openers))
            warnings: list[str] = []
            shared = self._keep(shared_memory.open_all(image, reader, self.base, openers, warnings, later))
            for_writing: dict[int, dict[int, int]] = {pb.Vma.FILE_SHARED: files, pb.Vma.SHARED: shared}
            for_reading = self._keep(mapped_files.open_for_reading(image, for_writing, self.base))
            packs = {number: self._high(reader.pack_fd(number), close=False) for number in set(reader.blocks.packs)}
            entered: dict[tuple[bytes, bytes, Opener], int] = {}

            def enter(process: pb.Process, path: bytes, inode: pb.Inode) -> int:
                key = path, inode.SerializeToString(deterministic=True), openers.process(process)
                if key not in entered:
                    entered[key] = self._high(directories.enter(path, inode, key[2], openers.removed), close=True)
                    if inode.removed:
                        warnings.extend(directories.warn_if_renamed(path, entered[key]))
                return entered[key]

            # Before the tree's inotify watches exist: this makes removed directories anew.
            working = {one.pid: enter(one, one.cwd, one.cwd_inode) for one in living(image)}
            roots = {one.pid: enter(one, one.root, one.root_inode) for one in living(image) if one.root}
            opened = self._stack.enter_context(
                descriptors.open_all(image, shared.__getitem__, stdio, terminal, openers)
            )
            opened.warnings += warnings
            sources = Sources(files, shared, packs, reader.blocks, for_reading)
            self.fds = RestorerFds(opened, sources, working, roots, reader.peek)
            self._stack = self._stack.pop_all()

    def open(self, path: str) -> int:
        """Open another file for the blank processes."""
        return self._high(os.open(path, os.O_RDONLY | os.O_CLOEXEC), close=True)

    def __enter__(self) -> _Material:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep(self, fds: dict[K, int]) -> dict[K, int]:
        for fd in fds.values():
            self._stack.callback(os.close, fd)
        return fds

    def _high(self, fd: int, *, close: bool) -> int:
        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.base)
        finally:
            if close:
                os.close(fd)
        self._stack.callback(os.close, copy)
        return copy


# ----------------------------------------------------------------------------------------------- waking


def _wake(
    image: pb.Tree,
    reader: SnapshotReader,
    setting: Setting,
    here: Here,
    material: _Material,
    waiting: WaitingInit,
    progress: Progress | None,
    first: Callable[[str], bool] | None,
    connected: Callable[[], object] | None,
    filled: Callable[[Iterable[Filled]], None] | None,
    foreground: bool,
    way: Way,
    prove: bool,
) -> Job:
    plan = make(image, here, material.fds)
    # Before the tree's processes can make new files, or watch this search.
    notices = list(pid_files.warnings(image)) if setting.capsule else []
    if setting.namespaces & Namespaces.USER:
        plan.processes[0].birth[:0] = credentials.drop_bounding(0, here.rights)
    integrity = Verification(reader, plan.compared_blocks())
    integrity.start()
    try:
        walker, init_program = None, material.open(str(capsule.INIT)) if here.executes else 0
        if setting.walk:
            seconds = inf if way == "native" or surroundings.why_no_capsule() else 2 * WALK_SECONDS
            walker = Walker(setting.walk, material.open("/proc/loadavg"), seconds)
        init = waiting.go(material.base)
        builder = Builder(
            plan, init.pid, setting.trace_options, _progress(plan.size, progress), walker, init_program, reader
        )
        try:
            builder.create_processes()
            builder.build(filled)
            builder.settle()
            integrity.finish()
            if prove:
                verification.contents(image, reader, builder.pids, material.fds.sources.shared)
            tree_pid = builder.processes[image.processes[0].pid].threads[0].tid
            builder.settle_others(
                lambda pid, child: capsule.init_arguments(
                    child, init.own_status_fd if pid == here.init else 0, hold_signals=foreground
                ),
                init.own_status_fd,
            )
            shared_memory.seal(image, material.fds.sources.shared.__getitem__)
            material.fds.opened.built()
            verification.look(image, builder.pids)
            if prove:
                verification.prove(image, builder.as_frozen(image))
            material.fds.opened.let_go()
            builder.release(first, connected)
        except BaseException:
            builder.kill()
            os.close(init.status_fd)
            raise
    finally:
        integrity.end()
    notices += surroundings.warnings(setting, waiting.ids)
    return Job(init, image.processes[0].pid, tree_pid, (*plan.warnings, *notices), inherited.ignored())


@contextmanager
def _series(series: Series | None, reader: SnapshotReader) -> Iterator[Callable[[Iterable[Filled]], None] | None]:
    """Begin a series with the snapshot that the block wakes; yield a function to call with its processes."""
    if series is None:
        yield None
        return
    series.close()
    tables: dict[Key, pb.PageTable] = {}

    def begin(processes: Iterable[Filled]) -> None:
        for one in processes:
            key = Key(one.pid, procfs.stat(one.pid).start_time)
            if one.userfaultfd >= 0 and (watch := WriteWatch.made(one.userfaultfd)):
                series.watch(key, watch, one.watchable)
            tables[key] = one.image.memory.pages

    try:
        yield begin
    except BaseException:
        series.close()
        raise
    series.note(reader.info.store, KnownBlocks.of(reader), tables)


def _progress(total: int, progress: Progress | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done = min(done + size, total)  # packs are read in larger parts than needed
        progress(done, total)

    return add

"""`torpor run`: start a command so that it can be frozen, and save it regularly.

The command runs as it would without Torpor: in no new namespaces, with the signals, limits, process group and terminal
of its launcher. It is a child of a torpor-init, which is a child of the launcher and a child subreaper. So orphans stay
descendants of the launcher, which may trace them under every setting of Yama (ptrace_scope) but the strictest.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from torpor import procfs
from torpor.arch.x86_64 import levels
from torpor.errors import NotFound, Refused, RestoreFailed, TorporError, failing
from torpor.remote import pid_allocation
from torpor.restorer import capsule
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.job import Job
from torpor.util import inherited
from torpor.util.inherited import Signals
from torpor.util.workers import NO_THREAD, Thread

if TYPE_CHECKING:
    from torpor.arch.x86_64.levels import PortableTo
    from torpor.store import SnapshotInfo, Store

LONGEST = 366 * 86400
"""The most seconds between two saves: longer than any job, and less than the longest timeout of threading."""


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    signals: Signals | None = None,
    foreground: bool = False,
) -> Job:
    """Start a command as a child of a torpor-init.

    The command inherits from this process what every child inherits: descriptors that are not close-on-exec, the
    current directory, process group, session and limits.

    Args:
        command: the program, searched in PATH, and its arguments.
        environment: the environment of the program; None for that of this process.
        signals: the signals that it ignores and blocks; None for those of this process and thread.
        foreground: whether only `Job.foreground` will forward signals to it.

    Raises:
        NotFound: there is no such program.
        RestoreFailed: the program could not be started.
    """
    path = _found(command[0], None)
    pid_allocation.pass_first()
    with inherited.raised_limits(), failing(RestoreFailed, "the command could not be started"):
        init = capsule.launch(
            Setting(Namespaces(0)),
            [path, *command],
            inherited.environment() if environment is None else environment,
            inherited.signals() if signals is None else signals,
            hold_signals=foreground,
        )
    return Job(init, *_command_pids(init.pid))


def become(command: Sequence[str]) -> NoReturn:
    """Execute a command in the place of this process.

    Raises:
        NotFound: there is no such program.
        RestoreFailed: it could not be executed.
    """
    path = _found(command[0], None)
    environment = inherited.environment()
    with failing(RestoreFailed, "the command could not be started"):
        inherited.restore_actions()
        try:
            os.execve(path, [*command], environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:  # else a script without "#!", which execvp(3) gives to a shell
                raise
            os.execve("/bin/sh", ["/bin/sh", path, *command[1:]], environment)


def below_init(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return a command line that starts a torpor-init with the command as its child, for `subprocess` and the like.

    The torpor-init ends with the command, in the same way. If it is started in a new session, so is the command.

    Args:
        command: the program, searched in the environment's PATH, and its arguments.
        environment: the environment of the program.

    Raises:
        NotFound: there is no such program.
    """
    path = _found(command[0], environment.get("PATH", os.defpath))
    pid_allocation.pass_first()
    _, *arguments = capsule.init_arguments(0, program=[path, *command])
    return [os.fspath(capsule.INIT), *map(os.fsdecode, arguments)]


def _found(program: str, path: str | None) -> str:
    found = shutil.which(program, path=path)
    if found is None:
        if "/" in program and os.path.exists(program):
            raise NotFound(
                f"{program!r} may not be executed",
                advice=f"`chmod +x` it, or give its interpreter, as in `python3 {program}`",
            )
        raise NotFound(f"there is no program {program!r}", advice="give its path, or see $PATH")
    if (interpreter := _interpreter(found)) and not os.path.exists(interpreter):
        raise NotFound(
            f"there is no {interpreter!r}, which {program!r} names as its interpreter", advice="correct its first line"
        )
    return found


def _interpreter(path: str) -> str | None:
    """The interpreter that a script names after "#!", without its argument (as the kernel's load_script() reads it)."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:  # an unreadable file may still be executable
        return None
    words = head[2:].split(b"\n")[0].replace(b"\t", b" ").split(b" ") if head.startswith(b"#!") else []
    return next((os.fsdecode(word) for word in words if word), None)


def run(
    command: Sequence[str],
    *,
    store: Store | str | os.PathLike[str] | None = None,
    every: float | None = None,
    keep: int | None = None,
    tags: Mapping[str, str] | None = None,
    with_files: Sequence[str] = (),
    portable: PortableTo | None = None,
    saved: Callable[[SnapshotInfo], None] | None = None,
    failed: Callable[[TorporError], None] | None = None,
) -> int:
    """Run a command in the foreground: forward signals to it and return when it ends.

    Call it from the main thread of a program that does nothing else.

    Args:
        command: the program and its arguments.
        store: the store for `every`, as for `checkpoint`.
        every: seconds between two saves, up to `LONGEST`; None for no saves.
        keep: how many of these snapshots stay, the newest and those that are pinned; None for all.
        tags: stored with each snapshot; the tag ``name`` is its name.
        with_files: as for `checkpoint`.
        portable: start it so that libraries which choose their code by the processor keep to this level of x86-64. Its
            snapshots can then be woken on all processors of the level. None: they use all that this processor has.
        saved: called with each snapshot, from another thread.
        failed: called with the error of each failed save; the command runs on. If the error ends all saving, it is
            called at once, and again when the command ends.

    Returns:
        The command's exit code, or minus the number of the signal that killed it.

    Raises:
        ValueError: `every` or `keep` is out of range; nothing was started.
        NotPermitted, StoreError: nothing can be saved in that store; nothing was started.
    """
    home = None if every is None else _created(store, every)
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}: it is a number of snapshots, 1 or more")
    environment = inherited.environment()
    if portable is not None:
        environment |= levels.variables(levels.number_of(portable), environment)
    job = start(command, environment=environment, signals=Job.hold_signals(), foreground=True)
    if every is None or home is None:
        return job.foreground()
    own = _KeptSnapshots(home, keep)
    ended = threading.Event()
    # Another thread saves and traces; this one waits and handles signals.
    trouble: list[TorporError] = []

    def save() -> None:
        try:
            _save(job, own, every, {"tags": tags, "with_files": with_files}, ended, saved, failed)
        except Exception as error:  # any error: nothing else would report it
            tell(f"{type(error).__name__}: {error}")

    def tell(why: str) -> None:
        trouble.append(TorporError(f"it runs on, but is not saved any more: {why}"))
        if failed is not None:
            with suppress(OSError):  # standard error is closed
                failed(trouble[0])

    saver = Thread(save)
    running = saver.start()
    if not running:
        tell(f"{NO_THREAD} (ulimit -u, pids.max)")
    try:
        return job.foreground()
    finally:
        ended.set()
        if running:
            saver.join()
        if trouble and failed is not None:
            failed(trouble[0])


def _created(store: Store | str | os.PathLike[str] | None, every: float) -> Store:
    from torpor.store import Store  # noqa: PLC0415  a command that is not saved needs none

    if not 0 < every <= LONGEST:
        raise ValueError(f"every is {every}: it is a number of seconds, more than 0 and at most {LONGEST}")
    if isinstance(store, Store):
        return store
    home = Store(store)
    home.create()
    return home


class _KeptSnapshots:
    """The snapshots that a run has taken, of which the newest few are kept."""

    def __init__(self, store: Store, most: int | None) -> None:
        self.store = store
        self._most = most
        self._ids: list[str] = []

    def add(self, snapshot: SnapshotInfo) -> None:
        """Add a snapshot, and remove the oldest ones if there are too many. Pinned snapshots stay."""
        self._ids.append(snapshot.id)
        while self._most and len(self._ids) > self._most:
            try:
                with suppress(Refused, NotFound):
                    self.store.remove(self._ids[0])
            except TorporError:  # the store cannot be used: the next save reports that
                return
            del self._ids[0]


def _save(
    job: Job,
    own: _KeptSnapshots,
    every: float,
    options: Mapping[str, Any],
    ended: threading.Event,
    saved: Callable[[SnapshotInfo], None] | None,
    failed: Callable[[TorporError], None] | None,
) -> None:
    # Imported late: the command starts earlier, and one that is not saved needs none of this.
    from torpor.dump.checkpoint import checkpoint  # noqa: PLC0415
    from torpor.dump.series import Series  # noqa: PLC0415

    with Series() as series:
        while not ended.wait(every):
            try:
                snapshot = checkpoint(job.tree_pid, store=own.store, then="run", series=series, **options)
            except TorporError as error:
                if failed is not None and not ended.is_set():
                    failed(error)
            else:
                own.add(snapshot)
                if saved is not None:
                    saved(snapshot)


def _command_pids(init: int) -> tuple[int, int]:
    """Return the command's PID in its own PID namespace and in this process's; zeros if it has ended already."""
    while not os.waitid(os.P_PID, init, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended between two reads
            if found := procfs.children(init, [init]):  # the command is init's first child
                status = procfs.status(procfs.read(f"/proc/{found[0]}/status"))
                return int(status[b"NSpid"].split()[-1]), found[0]
        os.sched_yield()
    return 0, 0

"""`torpor run`: start a command so that it can be frozen, and save it regularly.

The command lives as it would without Torpor: in no namespace of its own, with the signals, the limits, the group and
the terminal of whoever starts it. Between it and its launcher is a torpor-init: orphans fall to it, and so stay below
the launcher, which may trace what is below it under every setting of Yama but the strictest.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from torpor import procfs
from torpor.dump.checkpoint import checkpoint
from torpor.dump.series import Series
from torpor.errors import NotFound, TorporError
from torpor.restorer import capsule
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.job import Job
from torpor.store import SnapshotInfo, Store
from torpor.util import inherited
from torpor.util.inherited import Signals
from torpor.util.workers import NO_THREAD, Thread

LONGEST = 366 * 86400
"""Seconds between two saves, at most: more than the longest job, and less than what a thread may wait."""


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    signals: Signals | None = None,
    foreground: bool = False,
) -> Job:
    """Start a command as a child of a torpor-init.

    It has all that a program has which this process executes: the descriptors that are not close-on-exec, the current
    directory, group, session and limits.

    Args:
        command: the program, looked for in PATH, and its arguments.
        environment: of the program; None: as it is here.
        signals: those that it ignores and blocks; None: as it is here and now.
        foreground: `Job.foreground` is to hand signals on, and nobody else.

    Raises:
        NotFound: there is no such program.
        RestoreFailed: it could not be started.
    """
    path = shutil.which(command[0])
    if path is None:
        raise NotFound(f"there is no program {command[0]!r}", advice="give its path, or see $PATH")
    init = capsule.launch(
        Setting(Namespaces(0)),
        [path, *command],
        inherited.environment() if environment is None else environment,
        inherited.signals() if signals is None else signals,
        witness=foreground,
    )
    return Job(init, *_command_pids(init.pid))


def run(
    command: Sequence[str],
    *,
    store: Store | str | os.PathLike[str] | None = None,
    every: float | None = None,
    saved: Callable[[SnapshotInfo], None] | None = None,
    failed: Callable[[TorporError], None] | None = None,
) -> int:
    """Run a command in the foreground: signals are handed on to it, and its end is this function's.

    To be called by the main thread of a program that does nothing else.

    Args:
        command: the program and its arguments.
        store: where `every` saves to, as for `checkpoint`.
        every: save it after so many seconds, again and again; up to `LONGEST`.
        saved: told of each snapshot, by another thread.
        failed: told of each save that failed; the command runs on. If it is saved no more, told at once and at its end.

    Returns:
        Its exit code, or minus the number of the signal that killed it.

    Raises:
        ValueError: `every` is no time to wait; nothing was started.
    """
    if every is not None and not 0 < every <= LONGEST:
        raise ValueError(f"every is {every}: it is a number of seconds, more than 0 and at most {LONGEST}")
    job = start(command, signals=Job.hold_signals(), foreground=True)
    if every is None:
        return job.foreground()
    ended = threading.Event()
    # Each save traces from the one thread that it runs in; this one is for waiting and for signals.
    trouble: list[TorporError] = []

    def save() -> None:
        try:
            _save(job, store, every, ended, saved, failed)
        except Exception as error:  # whatever it is: nobody else hears of it
            tell(f"{type(error).__name__}: {error}")

    def tell(why: str) -> None:
        trouble.append(TorporError(f"it runs on and is saved no more: {why}"))
        if failed is not None:
            with suppress(OSError):  # nobody is there to be told
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


def _save(
    job: Job,
    store: Store | str | os.PathLike[str] | None,
    every: float,
    ended: threading.Event,
    saved: Callable[[SnapshotInfo], None] | None,
    failed: Callable[[TorporError], None] | None,
) -> None:
    with Series() as series:
        while not ended.wait(every):
            try:
                snapshot = checkpoint(job.tree_pid, store=store, then="run", series=series)
            except TorporError as error:
                if failed is not None and not ended.is_set():
                    failed(error)
            else:
                if saved is not None:
                    saved(snapshot)


def _command_pids(init: int) -> tuple[int, int]:
    """The command's PID in its own PID namespace and as this process sees it; zeros when it has ended already."""
    while not os.waitid(os.P_PID, init, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended between two looks
            if found := procfs.children(init, [init]):  # init starts it before all else
                status = procfs.status(procfs.read(f"/proc/{found[0]}/status"))
                return int(status[b"NSpid"].split()[-1]), found[0]
        os.sched_yield()
    return 0, 0

"""`torpor run`: start a command so that it can be frozen, and save it regularly.

The command lives in a capsule like a woken job: its PIDs can be given again on any host, and its launcher, which is
this process, may trace it under every setting of Yama but the strictest.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from torpor import capsule, procfs
from torpor.capsule import Namespaces, Setting
from torpor.checkpoint import checkpoint
from torpor.errors import NotFound, NotPermitted, TorporError
from torpor.job import Job
from torpor.probe import probe
from torpor.series import Series
from torpor.store import SnapshotInfo, Store


def start(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Job:
    """Start a command in a capsule, or, where the host allows none, without one: then ``Job.warnings`` says so.

    It inherits standard input, output and error, the current directory, and nothing else.

    Args:
        command: the program, looked for in PATH, and its arguments.
        environment: of the program; None: as it is here.

    Raises:
        NotFound: there is no such program.
        RestoreFailed: it could not be started.
    """
    path = shutil.which(command[0])
    if path is None:
        raise NotFound(f"there is no program {command[0]!r}", advice="give its path, or see $PATH")
    environment = os.environ if environment is None else environment
    setting, warnings = _setting()
    program = [path, *command]
    try:
        init = capsule.launch(setting, program, environment)
    except NotPermitted as error:
        warnings = (f"it runs outside a capsule: {error}",)
        setting = Setting(Namespaces(0))
        init = capsule.launch(setting, program, environment)
    return Job(init, *_command_pids(init.pid), warnings)


def run(
    command: Sequence[str],
    *,
    store: Store | str | os.PathLike[str] | None = None,
    every: float | None = None,
    saved: Callable[[SnapshotInfo], None] | None = None,
    failed: Callable[[TorporError], None] | None = None,
    warned: Callable[[str], None] | None = None,
) -> int:
    """Run a command in the foreground: signals are handed on to it, and its end is this function's.

    To be called by the main thread of a program that does nothing else.

    Args:
        command: the program and its arguments.
        store: where `every` saves to, as for `checkpoint`.
        every: save it after so many seconds, again and again.
        saved: told of each snapshot, by another thread.
        failed: told of each save that failed; the command runs on.
        warned: told, before anything else, what is not as it should be: ``Job.warnings``.

    Returns:
        Its exit code, or minus the number of the signal that killed it.
    """
    Job.hold_signals()
    job = start(command)
    if warned is not None:
        for warning in job.warnings:
            warned(warning)
    if every is None:
        return job.foreground()
    ended = threading.Event()
    # Each save traces from the one thread that it runs in; this one is for waiting and for signals.
    saver = threading.Thread(target=_save, args=(job, store, every, ended, saved, failed), name="torpor-every")
    saver.start()
    try:
        return job.foreground()
    finally:
        ended.set()
        saver.join()


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


def _setting() -> tuple[Setting, tuple[str, ...]]:
    host = probe()
    namespaces = Namespaces.PID | Namespaces.MOUNT
    if os.geteuid():
        namespaces |= Namespaces.USER
        if not host.can_restore_rootless:
            why = "; ".join(host.why.values()) or "no user and PID namespaces"
            return Setting(Namespaces(0)), (f"it runs outside a capsule, for this host allows none: {why}",)
    return Setting(namespaces), ()


def _command_pids(init: int) -> tuple[int, int]:
    """The command's PID in its own PID namespace and as this process sees it; zeros when it has ended already."""
    while not os.waitid(os.P_PID, init, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended between two looks
            if found := procfs.children(init, [init]):  # init starts it before all else
                status = procfs.status(procfs.read(f"/proc/{found[0]}/status"))
                return int(status[b"NSpid"].split()[-1]), found[0]
        os.sched_yield()
    return 0, 0

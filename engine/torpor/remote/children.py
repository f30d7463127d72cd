"""Forked children that execute no program: each does one thing and exits."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable

from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall

_PR_SET_PDEATHSIG = 1


def forked(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and exits; return its PID. The caller must wait for it."""
    pid = fork()
    if pid == 0:
        with Exiting():
            work()
    return pid


def forked_with_pipe(work: Callable[[int], object]) -> tuple[int, int]:
    """Fork a child that does `work` with a descriptor to report at, and exits.

    Returns:
        The PID of the child, which the caller must wait for, and the descriptor to read the reports from.

    Raises:
        OSError: this process is at its limit of descriptors or processes.
    """
    reader, writer = os.pipe()
    try:
        return forked(lambda: work(writer)), reader
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)


def fork() -> int:
    """Fork. The child may use no locks, and leaves by `Exiting`."""
    # Python warns about fork() in a process with threads, since locks may be held in the child. These children
    # use no locks: they make system calls and leave by _exit().
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Exiting:
    """A context manager that ends a forked child at the end of the block, also after an exception.

    Otherwise the child would run on as a copy of its parent.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os._exit(0 if kind is None else 1)


def sleep_with(parent: int) -> None:
    """Sleep until a signal ends this process. The kernel sends SIGKILL when the thread that forked it ends.

    Args:
        parent: the PID of the parent process. If the parent has ended already, the kernel sends no signal: so this is
            checked.
    """
    syscall(NR.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
    while os.getppid() == parent:
        signal.pause()

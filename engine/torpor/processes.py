"""Processes of this host: which live, which are below which, what they take, and what one started here inherits.

For programs that start, watch and wake jobs. A PID is one of the PID namespace that this process is in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from torpor import procfs
from torpor.arch.x86_64 import NR, levels
from torpor.arch.x86_64.levels import PortableTo
from torpor.procfs import pids
from torpor.remote.sys import pidfd_open, pidfd_send_signal
from torpor.util.inherited import Signals
from torpor.util.inherited import environment as inherited_environment
from torpor.util.inherited import signals as inherited_signals

__all__ = [
    "PortableTo",
    "Signals",
    "children",
    "dies_of",
    "inherited_environment",
    "inherited_signals",
    "is_ending",
    "parent",
    "pidfd_open",
    "pidfd_send_signal",
    "pids",
    "portable_environment",
    "resident",
    "start_time",
    "tree",
]

_UNSEEN = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What /proc says of a process that has ended, or of another user's under hidepid."""


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the boot: with its PID, its identity for as long as the host is up.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return _stat(pid).start_time


def parent(pid: int) -> int:
    """The PID of a process's parent; 0 if that is outside of this PID namespace.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return _stat(pid).ppid


def portable_environment(level: PortableTo, given: Mapping[str, str]) -> dict[str, str]:
    """An environment in which libraries keep to a level of x86-64, as `torpor.run` makes it of the given one."""
    return {**given, **levels.variables(levels.number_of(level), given)}


def is_ending(pid: int) -> bool:
    """Whether a process has ended, or is about to: its first thread exits, or has been sent SIGKILL."""
    return procfs.is_ending(pid, pid)


def dies_of(pid: int, number: int) -> bool:
    """Whether a signal whose default action is to end or to stop a program would do so to this process, as it is now.

    It would not if the process catches or ignores it, or if all its threads block it or wait for it (sigwait(3)).
    False if the process has ended; True if /proc does not say.
    """
    bit = 1 << (number - 1)
    try:
        for tid in procfs.threads(pid):
            status = procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))
            if (int(status[b"SigCgt"], 16) | int(status[b"SigIgn"], 16)) & bit:
                return False
            if not (int(status[b"SigBlk"], 16) | _awaited(pid, tid)) & bit:
                return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return False


def _awaited(pid: int, tid: int) -> int:
    """The signals that a thread waits for. The kernel does not show them as blocked meanwhile, but they end nothing."""
    words = procfs.read(f"/proc/{pid}/task/{tid}/syscall").split()
    if words[0] != b"%d" % NR.rt_sigtimedwait:
        return 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return int.from_bytes(os.pread(memory.fileno(), 8, int(words[1], 16)), "little")


def children(pid: int) -> list[int]:
    """The PIDs of a process's children; none of one that has ended, or that /proc hides (hidepid).

    None are found either on a kernel without CONFIG_PROC_CHILDREN, which Torpor needs for all else, too.
    """
    try:
        return procfs.children(pid, procfs.threads(pid))
    except _UNSEEN:
        return []


def tree(pid: int) -> Iterator[int]:
    """The PIDs of a process and of all below it, itself first; of those that start or end meanwhile, some."""
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children(one)


def resident(pid: int) -> int:
    """Bytes of memory that a process and all below it have; pages that they share count in each. 0 if it has ended."""
    total = 0
    for one in tree(pid):
        with suppress(*_UNSEEN):
            total += int(procfs.read(f"/proc/{one}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _stat(pid: int) -> procfs.Stat:
    try:
        return procfs.stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"there is no process {pid}") from None

"""Copies of descriptors of other processes: by pidfd_getfd(2) or, where that is denied, those that they have sent.

Default profiles of containers deny pidfd_getfd(2), and kcmp(2), which compares two descriptors. A frozen process then
sends all of its descriptors (torpor.dump.self_report), and copies of them are compared here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.remote.sys import pidfd_open, syscall, try_syscall

_F_SETSIG, _F_GETSIG, _F_DUPFD_QUERY = 10, 11, 1027  # include/uapi/linux/fcntl.h
_sent: dict[int, Mapping[int, int]] = {}
"""By PID: our copies of its descriptors, by their numbers there."""


@contextmanager
def sent_by(pid: int, copies: Mapping[int, int]) -> Iterator[None]:
    """Within the block, use these copies of all descriptors of a frozen process. They are closed at its end."""
    _sent[pid] = copies
    try:
        yield
    finally:
        del _sent[pid]
        for copy in copies.values():
            os.close(copy)


def ours(pid: int, number: int) -> int:
    """The copy of a descriptor that a process has sent, or our own descriptor; the caller does not close it.

    Raises:
        OSError: it has sent none.
    """
    if pid == os.getpid():
        return number
    copy = _sent.get(pid, {}).get(number)
    if copy is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), NR.pidfd_getfd.name)
    return copy


def copy_of(pidfd: int, number: int) -> int:
    """Copy a descriptor of another process; the caller must close the copy.

    Raises:
        OSError: EBADF if the process has no descriptor with this number.
    """
    if _sent:
        pid = int(procfs.status(procfs.read(f"/proc/self/fdinfo/{pidfd}"))[b"Pid"])
        if pid in _sent or pid == os.getpid():
            return fcntl.fcntl(ours(pid, number), fcntl.F_DUPFD_CLOEXEC, 0)
    return syscall(NR.pidfd_getfd, pidfd, number, 0)


def descriptor_of(pid: int, number: int) -> int:
    """Copy a descriptor of another process; the caller must close the copy.

    Raises:
        OSError: EBADF if the process has no descriptor with this number.
    """
    pidfd = pidfd_open(pid)
    try:
        return copy_of(pidfd, number)
    finally:
        os.close(pidfd)


def is_same(one: int, other: int) -> bool:
    """Whether two of our descriptors refer to one open file description, without kcmp(2)."""
    answer = try_syscall(NR.fcntl, one, _F_DUPFD_QUERY, other)
    if answer in (0, 1):
        return bool(answer)
    # Before Linux 6.10: change the signal of one (F_SETSIG) for a moment. Only who asked for signals could notice.
    before, now = (try_syscall(NR.fcntl, fd, _F_GETSIG, 0) for fd in (one, other))
    if before != now or before < 0:  # a descriptor that was opened with O_PATH has no signal, and nothing to share
        return False
    mark = signal.SIGRTMAX if before != signal.SIGRTMAX else signal.SIGRTMIN
    syscall(NR.fcntl, one, _F_SETSIG, mark)
    try:
        return syscall(NR.fcntl, other, _F_GETSIG, 0) == mark
    finally:
        syscall(NR.fcntl, one, _F_SETSIG, before)

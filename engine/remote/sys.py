"""Raw system calls, for what Python's os module has no function for."""

from __future__ import annotations

import os
from array import array

from torpor._native import ffi, lib
from torpor.remote.x86_64 import NR

_call = lib.tp_syscall


def syscall(nr: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """Make system call `nr` in this process and return its result.

    Raises:
        OSError: with the kernel's errno.
    """
    result: int = _call(nr, a, b, c, d, e, f)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def try_syscall(nr: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """Like `syscall`, but an error is returned as the negated errno: for callers to whom it is an answer."""
    result: int = _call(nr, a, b, c, d, e, f)
    return result


def descriptor_of(pid: int, number: int) -> int:
    """A copy of a process's descriptor, the caller's to close.

    Raises:
        OSError: EBADF when it has none of that number.
    """
    pidfd = os.pidfd_open(pid)
    try:
        return syscall(NR.pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)


def address_of(buffer: bytearray | array[int] | memoryview) -> int:
    """The address of a writable buffer's first byte. The caller keeps the buffer alive."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer, require_writable=True)))

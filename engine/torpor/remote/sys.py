"""Raw system calls, for what Python's os module has no function for.

A call is given the buffers themselves and holds them until it is over: the address of a buffer is no number that
anybody could keep for longer than the buffer (tests/unit/house/test_sources.py sees that it stays so).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from torpor._native import ffi, lib
from torpor.arch.x86_64 import NR

_call = lib.tp_syscall
_NOTHING = (0, 0, 0, 0, 0, 0)
_WORD = (1 << 64) - 1
_MFD_CLOEXEC = 1
_NAMES = {nr.value: nr.name for nr in NR}


class Words:
    """64-bit words in a row, pointers among them: a struct that leads the kernel to other buffers, which it holds.

    By index its words can be read again after a call that has written to it.
    """

    def __init__(self, *words: Argument) -> None:
        self._given = words
        self._words = array("Q", bytes(8 * len(words)))

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def laid_out(self, views: list[Any]) -> array[int]:
        """The struct, as long as the views that are added live."""
        for index, word in enumerate(self._given):
            self._words[index] = _word(word, views) & _WORD
        return self._words


@contextmanager
def closed_on_error(fd: int) -> Iterator[int]:
    """A descriptor that is closed if an error leaves the block, and else is for who made it to hand on."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


Argument: TypeAlias = "int | bytes | bytearray | memoryview | array[int] | Words"
"""Of a buffer the call gets the address of the first byte. Into ``bytes`` the kernel must not write."""


def syscall(nr: int, *args: Argument) -> int:
    """Make system call `nr` in this process and return its result.

    Raises:
        OSError: with the kernel's errno; as its `filename` the name of the call.
    """
    result = try_syscall(nr, *args)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result), _NAMES.get(nr))
    return result


def try_syscall(nr: int, *args: Argument) -> int:
    """Like `syscall`, but an error is returned as the negated errno: for callers to whom it is an answer."""
    views: list[Any] = []
    try:
        words = [arg if isinstance(arg, int) else _word(arg, views) for arg in args]
        result: int = _call(nr, *words, *_NOTHING[len(words) :])
        return result
    finally:
        _release(views)


class FileRights(NamedTuple):
    """What the kernel asks about when a path is walked (credentials(7))."""

    uid: int
    """Of the file system."""
    gid: int
    groups: tuple[int, ...]
    capabilities: int
    """The effective ones, a bit mask."""


def syscall_as(wanted: FileRights, own: FileRights, nr: int, *args: Argument) -> int:
    """Make system call `nr` with other rights, this thread's alone; its `own` are back when this returns.

    Raises:
        OSError: with the kernel's errno; EPERM also when the thread may not take these rights.
    """
    views: list[Any] = []
    held: list[Any] = []  # until the call is over
    try:
        words = [_word(arg, views) for arg in args]
        result: int = lib.tp_syscall_as(_native(wanted, held), _native(own, held), nr, *words, *_NOTHING[len(words) :])
    finally:
        _release(views)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _native(rights: FileRights, held: list[Any]) -> Any:
    """A struct tp_rights."""
    groups = ffi.new("uint32_t[]", list(rights.groups))
    told = {"uid": rights.uid, "gid": rights.gid, "groups": groups, "count": len(rights.groups)}
    held += groups, ffi.new("struct tp_rights *", told | {"effective": rights.capabilities})
    return held[-1]


def _word(arg: Argument, views: list[Any]) -> int:
    """What the kernel gets for an argument, as long as the views that are added live."""
    if isinstance(arg, int):
        return arg
    view = ffi.from_buffer(arg.laid_out(views) if isinstance(arg, Words) else arg)
    views.append(view)  # it holds the buffer, and keeps a bytearray from being moved
    return int(ffi.cast("uintptr_t", view))


def _release(views: list[Any]) -> None:
    """The call is over. None may be left to the collector of garbage, in the traceback of an error: one that clears a
    memoryview before the view that was taken of it crashes (CPython 3.11, Objects/memoryobject.c, memory_clear)."""
    for view in views:
        ffi.release(view)


# Python's own are missing in builds against the headers of older systems, as conda and uv bring them.


def pidfd_open(pid: int) -> int:
    """A descriptor of a process, closed by execve, the caller's to close.

    Raises:
        OSError: ESRCH when there is no such process.
    """
    return syscall(NR.pidfd_open, pid, 0)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to the very process.

    Raises:
        OSError: ESRCH when it has ended and was waited for.
    """
    syscall(NR.pidfd_send_signal, pidfd, number, 0, 0)


def memfd_create(name: bytes, flags: int = 0) -> int:
    """A file in memory, closed by execve.

    Args:
        name: as /proc shows it.
        flags: MFD_* besides MFD_CLOEXEC (include/uapi/linux/memfd.h).

    Raises:
        OSError: with the kernel's errno.
    """
    return syscall(NR.memfd_create, name + b"\0", flags | _MFD_CLOEXEC)


def descriptor_of(pid: int, number: int) -> int:
    """A copy of a process's descriptor, the caller's to close.

    Raises:
        OSError: EBADF when it has none of that number.
    """
    pidfd = pidfd_open(pid)
    try:
        return syscall(NR.pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)

"""Raw system calls that Python's os module has no function for.

A call takes the buffers themselves and holds them until it returns. No caller handles the address of a buffer, so none
can keep it for longer than the buffer lives (tests/unit/house/test_sources.py enforces this).
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
    """A struct of 64-bit words, some of which may be pointers to other buffers. It keeps those buffers alive.

    An index reads a word, also after a call has written to the struct.
    """

    def __init__(self, *words: Argument) -> None:
        self._given = words
        self._words = array("Q", bytes(8 * len(words)))

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def laid_out(self, views: list[Any]) -> array[int]:
        """The struct in memory. It is valid as long as the views that are appended to `views`."""
        for index, word in enumerate(self._given):
            self._words[index] = _word(word, views) & _WORD
        return self._words


@contextmanager
def closed_on_error(fd: int) -> Iterator[int]:
    """Close the descriptor if the block raises; else the caller keeps it."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


Argument: TypeAlias = "int | bytes | bytearray | memoryview | array[int] | Words"
"""For a buffer the call gets the address of the first byte. The kernel must not write to ``bytes``."""


def syscall(nr: int, *args: Argument) -> int:
    """Make system call `nr` in this process and return its result.

    Raises:
        OSError: with the kernel's errno, and the name of the call as its `filename`.
    """
    result = try_syscall(nr, *args)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result), _NAMES.get(nr))
    return result


def try_syscall(nr: int, *args: Argument) -> int:
    """Like `syscall`, but an error is returned as a negative errno: for callers that expect errors."""
    views: list[Any] = []
    try:
        words = [arg if isinstance(arg, int) else _word(arg, views) for arg in args]
        result: int = _call(nr, *words, *_NOTHING[len(words) :])
        return result
    finally:
        _release(views)


class FileRights(NamedTuple):
    """The credentials that the kernel checks when it resolves a path (credentials(7))."""

    uid: int
    """The file system uid (fsuid)."""
    gid: int
    groups: tuple[int, ...]
    capabilities: int
    """The effective capabilities, a bit mask."""


def syscall_as(wanted: FileRights, own: FileRights, nr: int, *args: Argument) -> int:
    """Make system call `nr` with other credentials, in this thread only; then set its `own` again.

    Raises:
        OSError: with the kernel's errno; EPERM also if the thread may not take these credentials.
    """
    views: list[Any] = []
    alive: list[Any] = []  # keeps them alive until the call is over
    try:
        words = [_word(arg, views) for arg in args]
        result: int = lib.tp_syscall_as(
            _native(wanted, alive), _native(own, alive), nr, *words, *_NOTHING[len(words) :]
        )
    finally:
        _release(views)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _native(rights: FileRights, alive: list[Any]) -> Any:
    """Make a struct tp_rights."""
    groups = ffi.new("uint32_t[]", list(rights.groups))
    fields = {"uid": rights.uid, "gid": rights.gid, "groups": groups, "count": len(rights.groups)}
    alive += groups, ffi.new("struct tp_rights *", fields | {"effective": rights.capabilities})
    return alive[-1]


def _word(arg: Argument, views: list[Any]) -> int:
    """The word that the kernel gets for an argument. It is valid as long as the views that are appended to `views`."""
    if isinstance(arg, int):
        return arg
    view = ffi.from_buffer(arg.laid_out(views) if isinstance(arg, Words) else arg)
    views.append(view)  # it holds the buffer, and keeps a bytearray from being moved
    return int(ffi.cast("uintptr_t", view))


def _release(views: list[Any]) -> None:
    """Release the views after the call. The garbage collector must not find one, in the traceback of an error: if it
    clears a memoryview before the view that was taken of it, CPython crashes (3.11, Objects/memoryobject.c,
    memory_clear).
    """
    for view in views:
        ffi.release(view)


# os has these functions too, but not in builds against the headers of older systems, such as those of conda and uv.


def pidfd_open(pid: int) -> int:
    """Open a close-on-exec pidfd; the caller must close it.

    Raises:
        OSError: ESRCH if there is no such process.
    """
    return syscall(NR.pidfd_open, pid, 0)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to exactly this process.

    Raises:
        OSError: ESRCH if it has ended and was reaped.
    """
    syscall(NR.pidfd_send_signal, pidfd, number, 0, 0)


def memfd_create(name: bytes, flags: int = 0) -> int:
    """Create a close-on-exec file in memory.

    Args:
        name: as /proc shows it.
        flags: MFD_* besides MFD_CLOEXEC (include/uapi/linux/memfd.h).

    Raises:
        OSError: with the kernel's errno.
    """
    return syscall(NR.memfd_create, name + b"\0", flags | _MFD_CLOEXEC)

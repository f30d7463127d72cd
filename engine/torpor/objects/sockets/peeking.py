"""Look at the queue of a socket without taking anything out of it (MSG_PEEK, and SO_PEEK_OFF, see socket(7)).

The offset is set for that moment only; if the dumper is killed then, it stays set, which only a program that peeks at
its queue could notice.

In a queue of messages (datagrams, packets), a peek without an offset shows the first message, even if it is empty. An
empty message further back is shown once: every later peek skips it (net/core/datagram.c, __skb_try_recv_from_queue).
So a look that has seen such a message leaves a note for the next look. It stores the note in the socket, as
SO_PEEK_OFF: Linux takes any negative number for "off" (sk_peek_offset in net/core/sock.c). The note is -2 minus the
number of messages behind the last empty one. While that is in the queue, so are these messages, and one in front of
them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torpor.arch.x86_64 import NR
from torpor.objects.sockets.addresses import LONGEST_NAME
from torpor.remote.sys import Words, syscall

SO_PEEK_OFF = 42  # include/uapi/asm-generic/socket.h
OFF = -1
_NOTE = -2
"""The highest note."""


class Peeked(NamedTuple):
    """The result of the next recvmsg()."""

    content: bytes
    flags: int
    """msg_flags."""
    name: bytes
    """The sender's struct sockaddr."""
    control: bytes
    """Control messages."""


def peek(fd: int, size: int, flags: int = 0, control: int = 0) -> Peeked:
    """What the next recvmsg() of up to `size` bytes would return; it stays in the queue.

    Args:
        fd: the socket.
        size: room for content, in bytes.
        flags: besides MSG_PEEK and MSG_DONTWAIT.
        control: room for control messages, in bytes; we must close the descriptors in them.
    """
    content, name, room = bytearray(max(size, 1)), bytearray(LONGEST_NAME), bytearray(max(control, 1))
    header = Words(name, LONGEST_NAME, Words(content, size), 1, room, control, 0)
    got = syscall(NR.recvmsg, fd, header, flags | socket.MSG_PEEK | socket.MSG_DONTWAIT)
    named, controlled = header[1] & 0xFFFFFFFF, header[5]  # struct msghdr
    return Peeked(
        bytes(content[: min(got, size)]), header[6] & 0xFFFFFFFF, bytes(name[:named]), bytes(room[:controlled])
    )


@contextmanager
def peeking_on(fd: int) -> Iterator[None]:
    """In the block each peek at a stream continues behind the previous one."""
    set_offset(fd, 0)
    try:
        yield
    finally:
        set_offset(fd, OFF)


def set_offset(fd: int, offset: int) -> None:
    """Set the offset for the next peek at a queue; negative: each peek starts at the beginning."""
    value = struct.pack("i", offset)
    syscall(NR.setsockopt, fd, socket.SOL_SOCKET, SO_PEEK_OFF, value, len(value))


class Look:
    """A look at a queue of messages, one after the other. A context manager: leaving it writes the note."""

    def __init__(
        self,
        fd: int,
        before: int,
        size: int,
        flags: int = 0,
        control: int = 0,
        ends: Callable[[Peeked], bool] = lambda _: False,
    ) -> None:
        """
        Args:
            fd: the socket.
            before: its SO_PEEK_OFF, which is negative.
            size: as for `peek`, like `flags` and `control`.
            flags: see there.
            control: see there.
            ends: tells the end of a connection from a message. At the end of the queue there is none (EAGAIN).
        """
        self._fd = fd
        self._before = before
        self._room = (size, flags, control)
        self._ends = ends
        self._sizes: list[int] = []

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        note = self._note()
        if self._sizes or note != self._before:
            set_offset(self._fd, note)

    def __iter__(self) -> Look:
        return self

    def __next__(self) -> Peeked:
        try:
            found = peek(self._fd, *self._room)
        except BlockingIOError:
            raise StopIteration from None
        if self._ends(found):
            raise StopIteration
        self._sizes.append(len(found.content))
        if len(self._sizes) == 1:
            set_offset(self._fd, len(found.content))
        return found

    @property
    def may_have_missed(self) -> bool:
        """Whether the queue may have an empty message that the kernel showed to an earlier look but not to this one."""
        return self._before <= _NOTE and len(self._sizes) > _NOTE - self._before

    def _note(self) -> int:
        count = len(self._sizes)
        behind = [count - 1 - place for place, size in enumerate(self._sizes) if place and not size]
        if self.may_have_missed:
            behind.append(_NOTE - self._before)
        return _NOTE - min(behind) if behind else OFF

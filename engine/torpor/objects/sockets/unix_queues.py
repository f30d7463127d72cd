"""What lies in the queues of unix sockets: bytes or messages, who sent them, and descriptors that come with them.

A queue is read without taking anything out of it (MSG_PEEK behind SO_PEEK_OFF, socket(7)), through a copy of the
socket. The offset is set for that moment only; a dumper killed in it leaves it set, which only a program that peeks at
its queue could see. Descriptors that come with a message (SCM_RIGHTS, unix(7)) are given to whoever peeks as well: by
these copies one learns what is under way. In a stream they come with the first byte of what was sent with them. A peek
goes on to the end of that whatever room it has; but what was sent at once is copied as a whole or not at all
(net/unix/af_unix.c, unix_stream_read_generic), so one without room for the last byte ends where it begins. An empty
datagram is shown only once: if the program goes on and still has not read it by the next checkpoint, that one loses it
(net/core/datagram.c, __skb_try_recv_from_queue).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.kind import InFlight
from torpor.objects.sockets import common
from torpor.objects.sockets.common import SocketState
from torpor.remote.sys import Words, syscall

LONGEST_MESSAGE = 1 << 20
"""Bytes; a sender's buffer (net.core.wmem_max) bounds it to less on any common system."""
PATH = 2
"""Where in a struct sockaddr_un the name begins."""

MSG_CMSG_CLOEXEC = 0x40000000
_NOWHERE = 8
"""An address that nothing can be written to (vm.mmap_min_addr)."""
CONTROL_ROOM = 2048
"""Bytes: more than the descriptors that one message can have (SCM_MAX_FD is 253)."""
_CONTROL = struct.Struct("=Qii")  # struct cmsghdr
_PASSING = (socket.SO_PASSCRED, socket.SO_PASSSEC, common.SO_PASSPIDFD)


@dataclass
class Message:
    """A message in a queue, or a piece of a stream."""

    content: bytes
    sender: bytes = b""
    """The name of the socket that a datagram came from, as the kernel gives it."""
    rights: list[InFlight] = field(default_factory=list)
    """The descriptors that come with its first byte."""


@dataclass
class Queue:
    """What lies in a socket."""

    messages: list[Message] = field(default_factory=list)
    lost: str = ""
    """Why it could not be taken, or not all of it."""


def peek(copy: int, state: SocketState) -> Queue:
    """Take what lies in a socket that does not listen; it stays there."""
    queue = Queue()
    if any(any(state.options.get((socket.SOL_SOCKET, name), b"")) for name in _PASSING):
        if state.events & select.POLLIN and (state.queued or state.family.type == socket.SOCK_DGRAM):
            queue.lost = "messages with the credentials of their senders wait in it (SO_PASSCRED), which are not kept"
        return queue
    try:
        _peek(copy, state, queue)
    except BaseException:
        for message in queue.messages:
            for descriptor in message.rights:
                os.close(descriptor.fd)
        raise
    return queue


def _peek(copy: int, state: SocketState, queue: Queue) -> None:
    if state.events & select.POLLPRI:
        queue.lost = "urgent data is in its queue (MSG_OOB), which is not kept"
    elif state.family.type == socket.SOCK_STREAM:
        if state.queued:
            _peek_stream(copy, state.queued, queue)
    elif state.events & select.POLLERR and (state.queued or state.family.type == socket.SOCK_DGRAM):
        # Of packets, too (net/core/datagram.c, __skb_try_recv_datagram()); one that was reset has it as it was.
        queue.lost = "an error waits in it, which a look into its queue would take out"
    elif state.events & select.POLLERR:
        return
    elif state.events & select.POLLIN:
        with common.peeking_on(copy):
            _peek_messages(copy, state, queue)


def _peek_stream(copy: int, size: int, queue: Queue) -> None:
    # It may end before its size says: the kernel goes on to count an urgent byte that was passed over.
    with suppress(BlockingIOError):
        whole = _next(copy, size, queue)
        queue.messages.append(whole)
        if len(whole.content) < size or whole.rights:
            with common.peeking_on(copy):
                _peek_pieces(copy, size, whole, queue)
        if sum(len(message.content) for message in queue.messages) != size:
            queue.lost = "not all that is in its queue can be seen"


def _peek_pieces(copy: int, size: int, message: Message, queue: Queue) -> None:
    """Cut a stream where descriptors come; its first piece is the queue's last message."""
    at = 0
    while message.content and not queue.lost:
        # What was sent before the descriptors came is read without them.
        begin = _before_rights(copy, at, len(message.content)) if message.rights else 0
        if begin:
            queue.messages.insert(-1, Message(message.content[:begin]))
            message.content = message.content[begin:]
            at += begin
        at += len(message.content)
        if at >= size:
            return
        common.set_peek_offset(copy, at)
        message = _next(copy, size - at, queue)
        queue.messages.append(message)


def _before_rights(copy: int, at: int, size: int) -> int:
    """How many of the `size` bytes from `at` on were sent before those with which descriptors come, which end there."""
    common.set_peek_offset(copy, at)
    header = Words(0, 0, Words(bytearray(size), size - 1, _NOWHERE, 1), 2, 0, 0, 0)  # struct msghdr
    try:
        return syscall(NR.recvmsg, copy, header, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return 0


def _peek_messages(copy: int, state: SocketState, queue: Queue) -> None:
    # At its end a queue says EAGAIN, but that of a connection that has ended 0 again and again, like empty messages.
    ended = state.family.type == socket.SOCK_SEQPACKET and state.events & select.POLLRDHUP
    with suppress(BlockingIOError):
        while not queue.lost and (not ended or sum(len(message.content) for message in queue.messages) < state.queued):
            queue.messages.append(_next(copy, LONGEST_MESSAGE, queue))


def _next(copy: int, size: int, queue: Queue) -> Message:
    """The next message; what cannot be kept of it is said to `queue`."""
    seen = common.peek(copy, size, MSG_CMSG_CLOEXEC, CONTROL_ROOM)
    message = Message(seen.content, seen.name[PATH:])
    for level, kind, content in _controls(seen.control):
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            message.rights += [InFlight(fd) for (fd,) in struct.iter_unpack("=i", content)]
        else:
            queue.lost = f"a control message comes with what waits in it ({level}/{kind}), which is not kept"
    if seen.flags & socket.MSG_CTRUNC:
        queue.lost = "descriptors are on their way to it (SCM_RIGHTS) that this process cannot have"
    if seen.flags & socket.MSG_TRUNC:
        queue.lost = f"a message of more than {LONGEST_MESSAGE} bytes is on its way to it"
    return message


def _controls(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _CONTROL.size <= len(raw):
        length, level, kind = _CONTROL.unpack_from(raw, at)
        yield level, kind, raw[at + _CONTROL.size : at + length]
        at += (length + 7) & ~7


def fill(
    sender: socket.socket,
    unix: UnixMessage,
    slots: Mapping[int, int],
    which: Sequence[int] | None = None,
    name: bytes = b"",
) -> None:
    """Send again what lay in a socket's queue.

    Args:
        sender: what sends it.
        unix: the socket of the image.
        slots: the descriptors of what comes with it.
        which: the messages to send; None sends all.
        name: to which name a datagram goes; empty where the sender is connected.

    Raises:
        RestoreFailed: the queue does not take them.
    """
    rights = {one.message: [slots[index] for index in one.descriptions] for one in unix.under_way}
    for number in range(len(unix.messages)) if which is None else which:
        left, fds = memoryview(unix.messages[number]), rights.get(number)
        while True:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
            try:
                sent = sender.sendmsg([left], control, socket.MSG_DONTWAIT, name or None)
            except BlockingIOError:
                if not common.enlarge(sender, socket.SO_SNDBUF):
                    raise RestoreFailed("a unix socket does not take what was on its way to it") from None
                continue
            left, fds = left[sent:], None
            if not left:
                break
    common.let_go_of_size(sender)

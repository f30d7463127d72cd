"""The content of unix sockets' queues: bytes or messages, their senders, and descriptors that come with them.

A queue is read through a copy of the socket, and nothing is taken out of it (`torpor.objects.sockets.peeking`). A peek
also returns descriptors that come with a message (SCM_RIGHTS, unix(7)): these copies show which ones are in flight. In
a stream they come with the first byte of the data sent with them. A peek continues to the end of that data whatever the
buffer's size; but data that was sent at once is copied as a whole or not at all (net/unix/af_unix.c,
unix_stream_read_generic), so a peek without room for the last byte ends where that data begins.

A checkpoint is refused while the queue may have an empty message that the kernel showed to an earlier checkpoint only.
Empty packets at the end of a connection are not kept: the receiver cannot tell them from that end.
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
from torpor.objects.sockets import buffers, common, peeking, unix_paths
from torpor.objects.sockets.common import SocketState
from torpor.remote.sys import Words, syscall

LONGEST_MESSAGE = 1 << 20
"""In bytes; on any common system a sender's buffer (net.core.wmem_max) is smaller."""
PATH = 2
"""The offset of the name in a struct sockaddr_un."""

MSG_CMSG_CLOEXEC = 0x40000000
_NOWHERE = 8
"""An address where nothing can be written (vm.mmap_min_addr)."""
CONTROL_ROOM = 2048
"""In bytes: more than the descriptors of one message take (SCM_MAX_FD is 253)."""
_CONTROL = struct.Struct("=Qii")  # struct cmsghdr
_PASSING = (socket.SO_PASSCRED, socket.SO_PASSSEC, common.SO_PASSPIDFD)


@dataclass
class Message:
    """A message in a queue, or a piece of a stream."""

    content: bytes
    sender: bytes = b""
    """The name of the socket that sent a datagram, from the kernel."""
    rights: list[InFlight] = field(default_factory=list)
    """The descriptors that come with its first byte."""


@dataclass
class Queue:
    """The content of a socket's queue."""

    messages: list[Message] = field(default_factory=list)
    lost: str = ""
    """Why the content could not be read, or not all of it."""


def peek(copy: int, state: SocketState) -> Queue:
    """Read the queue of a socket that does not listen; the content stays there."""
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
        # This holds for SEQPACKET too (net/core/datagram.c, __skb_try_recv_datagram()); a reset connection keeps its
        # error.
        queue.lost = "it has a pending error, which reading its queue would consume"
    elif state.events & select.POLLERR:
        return
    elif state.may_hold_messages:
        _peek_messages(copy, state, queue)


def _peek_stream(copy: int, size: int, queue: Queue) -> None:
    # The data may be shorter than the size: the kernel still counts an urgent byte that was skipped.
    with suppress(BlockingIOError):
        whole = _next(copy, size, queue)
        queue.messages.append(whole)
        if len(whole.content) < size or whole.rights:
            with peeking.peeking_on(copy):
                _peek_pieces(copy, size, whole, queue)
        if sum(len(message.content) for message in queue.messages) != size:
            queue.lost = "not all that is in its queue can be seen"


def _peek_pieces(copy: int, size: int, message: Message, queue: Queue) -> None:
    """Split a stream where descriptors come; its first piece is the queue's last message."""
    at = 0
    while message.content and not queue.lost:
        # A read returns the data before the descriptors separately.
        begin = _before_rights(copy, at, len(message.content)) if message.rights else 0
        if begin:
            queue.messages.insert(-1, Message(message.content[:begin]))
            message.content = message.content[begin:]
            at += begin
        at += len(message.content)
        if at >= size:
            return
        peeking.set_offset(copy, at)
        message = _next(copy, size - at, queue)
        queue.messages.append(message)


def _before_rights(copy: int, at: int, size: int) -> int:
    """How many of the `size` bytes from `at` on were sent before the data with the descriptors, which ends there."""
    peeking.set_offset(copy, at)
    header = Words(0, 0, Words(bytearray(size), size - 1, _NOWHERE, 1), 2, 0, 0, 0)  # struct msghdr
    try:
        return syscall(NR.recvmsg, copy, header, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return 0


def _peek_messages(copy: int, state: SocketState, queue: Queue) -> None:
    # An empty queue returns EAGAIN, but a closed connection returns 0 again and again, like empty messages.
    ended = state.family.type == socket.SOCK_SEQPACKET and state.events & select.POLLRDHUP
    left = state.queued
    with peeking.Look(copy, state.peek_offset, LONGEST_MESSAGE, MSG_CMSG_CLOEXEC, CONTROL_ROOM) as look:
        while not queue.lost and not (ended and left <= 0) and (seen := next(look, None)):
            queue.messages.append(_kept(seen, queue))
            left -= len(seen.content)
        if look.may_have_missed and not queue.lost:
            queue.lost = "an empty message may wait in it, which the kernel has shown to an earlier checkpoint only"


def _next(copy: int, size: int, queue: Queue) -> Message:
    """Read the next message of a stream; `queue.lost` says what of it cannot be kept."""
    return _kept(peeking.peek(copy, size, MSG_CMSG_CLOEXEC, CONTROL_ROOM), queue)


def _kept(seen: peeking.Peeked, queue: Queue) -> Message:
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
    """Send the content of a socket's queue again.

    Args:
        sender: the sending socket.
        unix: the socket of the image.
        slots: the descriptors that come with messages.
        which: the messages to send; None: all.
        name: the destination of a datagram; empty if the sender is connected.

    Raises:
        RestoreFailed: the queue does not accept them.
    """
    rights = {one.message: [slots[index] for index in one.descriptions] for one in unix.under_way}
    with unix_paths.for_python(name) as there:
        for number in range(len(unix.messages)) if which is None else which:
            _send(sender, unix.messages[number], rights.get(number), there)
    buffers.let_go_of_size(sender)


def _send(sender: socket.socket, content: bytes, fds: Sequence[int] | None, there: bytes) -> None:
    left = memoryview(content)
    while True:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        try:
            sent = sender.sendmsg([left], control, socket.MSG_DONTWAIT, there or None)
        except BlockingIOError:
            if not buffers.enlarge(sender, socket.SO_SNDBUF):
                raise RestoreFailed("a unix socket has no room for its queued messages") from None
            continue
        left, fds = left[sent:], None
        if not left:
            return

"""Unix sockets: pairs, connections, listeners, and what is on its way between them.

Kept: type, receive queues with the borders between messages, shutdown of either side, options, names (see
`torpor.objects.unix_names`), and an end whose other end is closed already. Refused: connections to sockets outside the
tree (but for standard input, output and error, and for datagrams to a name), connections that were not accepted yet,
datagrams that wait in a socket with a name, descriptors and credentials on their way (SCM_RIGHTS, SCM_CREDENTIALS). Not
kept: SO_PEERCRED, which names the restoring process, and the name of an accepted end whose listener is closed.

Who is connected to whom is told by sock_diag(7), in one dump for the whole tree. Messages of datagram and
seqpacket sockets behind the first can only be seen with SO_PEEK_OFF (socket(7)), which is set for that moment; a
dumper killed in it leaves it set, which only a program that peeks at its queue could see.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects import sockets, unix_names
from torpor.objects.description import (
    Describing,
    GrabbedDescriptors,
    Held,
    Kind,
    Opening,
    Problem,
    Seen,
    borrowed,
    naming,
)
from torpor.objects.sockets import SocketState

OPTIONS = unix_names.OPTIONS
LONGEST_MESSAGE = 1 << 20
"""Bytes; a sender's buffer (net.core.wmem_max) bounds it to less on any common system."""

PATH = 2
"""Where in a struct sockaddr_un the name begins."""
RCV_SHUTDOWN, SEND_SHUTDOWN = 1, 2
TCP_LISTEN = 10
"""Unix sockets use TCP's numbers for their states."""

# include/uapi/linux/sock_diag.h, unix_diag.h, netlink.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UDIAG_SHOW_PEER, UDIAG_SHOW_RQLEN = 1, 2, 4, 16
UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER, UNIX_DIAG_RQLEN, UNIX_DIAG_SHUTDOWN = 0, 1, 2, 4, 6
ANY = (1 << 32) - 1
HEADER = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBHIIIII")
MESSAGE = struct.Struct("=BBBBIII")
ATTRIBUTE = struct.Struct("=HH")


class Known(NamedTuple):
    """What the kernel says of a unix socket."""

    state: int
    name: bytes
    peer: int | None
    """The inode of the other end; 0: it is closed or not accepted yet; None: it was never connected."""
    shutdown: int
    inode: int | None
    """Of the file of its name: the lower 32 bits."""
    waiting: int
    """Of a listener: connections that were not accepted."""
    backlog: int
    """Of a listener."""


class Diagnosis:
    """Every unix socket of this network namespace, by inode; read at once, parsed when it is asked for."""

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self.unavailable = ""
        """Why the kernel does not tell, if it does not."""
        shown = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN
        request = REQUEST.pack(socket.AF_UNIX, 0, 0, ANY, 0, shown, ANY, ANY)
        length = HEADER.size + len(request)
        header = HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
                link.setblocking(True)
                link.send(header + request)
                while not self._complete():
                    self._raw.append(link.recv(1 << 20))
        except OSError as error:
            self.unavailable = error.strerror or str(error)

    def _complete(self) -> bool:
        if not self._raw:
            return False
        for kind, body in _messages(self._raw[-1]):
            if kind == NLMSG_ERROR:
                self.unavailable = os.strerror(-struct.unpack_from("=i", body)[0])
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return True
        return False

    @cached_property
    def sockets(self) -> dict[int, Known]:
        """By inode."""
        found = {}
        for raw in self._raw:
            for kind, body in _messages(raw):
                if kind == SOCK_DIAG_BY_FAMILY:
                    _, _, state, _, inode, _, _ = MESSAGE.unpack_from(body)
                    attributes = dict(_attributes(body[MESSAGE.size :]))
                    peer, file = attributes.get(UNIX_DIAG_PEER), attributes.get(UNIX_DIAG_VFS)
                    waiting, backlog = struct.unpack("=II", attributes.get(UNIX_DIAG_RQLEN, bytes(8)))
                    found[inode] = Known(
                        state,
                        unix_names.of(attributes.get(UNIX_DIAG_NAME, b"")),
                        struct.unpack("=I", peer)[0] if peer else None,
                        attributes.get(UNIX_DIAG_SHUTDOWN, b"\0")[0],
                        struct.unpack_from("=I", file)[0] if file else None,
                        waiting,
                        backlog,
                    )
        return found


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(raw):
        length, kind, *_ = HEADER.unpack_from(raw, at)
        yield kind, raw[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(raw):
        length, kind = ATTRIBUTE.unpack_from(raw, at)
        yield kind, raw[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


@dataclass
class UnixState:
    """A unix socket as it was."""

    socket: SocketState
    peer_name: bytes
    messages: list[bytes] = field(default_factory=list)
    """The receive queue; a stream's is one piece."""
    lost: str = ""
    """Why the queue could not be taken."""
    known: Known | None = None
    peer: Held[UnixState] | None = None
    """The other end, if it is in the tree."""
    diagnosis: Diagnosis | None = None

    @property
    def listening(self) -> bool:
        """Whether it listens."""
        return self.known is not None and self.known.state == TCP_LISTEN

    @property
    def sends_to_name(self) -> bool:
        """Whether it is a datagram socket that is connected to another by name, and not one of a pair."""
        mutual = self.peer is not None and self.peer.state.peer is not None and self.peer.state.peer.state is self
        return self.socket.family.type == socket.SOCK_DGRAM and bool(self.peer_name) and not mutual

    @property
    def bound(self) -> bool:
        """Whether its name is its own; an accepted end shows its listener's."""
        known = self.known
        alone = self.sends_to_name or (known is not None and known.peer is None)
        return known is not None and bool(known.name) and (alone or self.listening)


class Unix(Kind[UnixState]):
    """A unix socket."""

    field = "unix"

    def matches(self, seen: Seen) -> bool:
        """By its family."""
        return seen.family is not None and seen.family.family == socket.AF_UNIX

    def grab(self, held: Held[UnixState], pidfd: int, *, content: bool) -> UnixState:
        """Options and the queue."""
        with borrowed(pidfd, held.holders[0].fd) as copy:
            listening = bool(sockets.number(copy, socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            name = unix_names.of(sockets.peer_name(copy)[PATH:])
            state = UnixState(sockets.look(copy, OPTIONS, listening=listening), name)
            if content and not listening and not state.socket.peek_offset:
                if state.socket.family.type == socket.SOCK_STREAM:
                    _peek_stream(copy, state)
                elif state.socket.events & select.POLLIN:
                    _peek_messages(copy, state)
        return state

    def finish(self, mine: list[Held[UnixState]], tree: GrabbedDescriptors) -> None:
        """Ask who is connected to whom."""
        if mine:
            diagnosis = Diagnosis()
            for held in mine:
                held.state.diagnosis = diagnosis

    def outside(self, held: Held[UnixState], tree: GrabbedDescriptors) -> str:
        """The other end, when it is open and not in the tree."""
        _pair(tree)
        known = held.state.known
        if known is None or known.peer is None or held.state.peer is not None or _peer_is_closed(held.state):
            return ""
        if held.state.sends_to_name:
            return ""
        return f"the unix socket {unix_names.printable(held.state.peer_name) or known.peer}"

    def judge(self, held: Held[UnixState], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """It has no name, and all that is on its way could be taken."""
        _pair(tree)
        state = held.state
        yield from sockets.judge(state.socket, held.holders[0].pid)
        if state.diagnosis and state.diagnosis.unavailable:
            yield Problem(
                f"the kernel does not tell who it is connected to: {state.diagnosis.unavailable}",
                "have the kernel module unix_diag loaded",
            )
        elif state.known is None:
            yield Problem("the kernel does not know it in this network namespace")
        elif state.bound:
            yield from unix_names.judge(state.known.name, state.known.inode)
            if state.listening and state.known.waiting:
                yield Problem(
                    f"{state.known.waiting} connections to it were not accepted yet", "try again", passing=True
                )
            if state.messages or (state.socket.events & select.POLLIN and not state.listening and not tree.content):
                yield Problem(
                    "datagrams wait in it, which are not kept yet", "try again when they were received", passing=True
                )
        elif state.known.name and state.socket.family.type == socket.SOCK_DGRAM:
            yield Problem("it has a name, and its other end is closed or has none", "close it")
        elif state.sends_to_name:
            if state.messages:
                yield Problem(
                    "datagrams wait in it, which are not kept yet", "try again when they were received", passing=True
                )
        elif state.peer is not None and state.peer.state.peer is not held:
            yield Problem("its other end is connected to another socket, which is not kept")
        if state.lost:
            yield Problem(state.lost, "try again when the program has received what was sent", passing=True)

    def describe(self, held: Held[UnixState], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Its type, its other end, and what is on its way to it."""
        state = held.state
        assert state.known
        out.unix.type = state.socket.family.type
        out.unix.messages.extend(state.messages)
        out.unix.shut_read = bool(state.known.shutdown & RCV_SHUTDOWN)
        out.unix.shut_write = bool(state.known.shutdown & SEND_SHUTDOWN)
        out.unix.options.extend(sockets.kept(state.socket.family, state.socket.options, OPTIONS))
        out.unix.reset = bool(state.socket.events & select.POLLERR)
        out.unix.name = state.known.name
        if state.bound:
            out.unix.listening, out.unix.backlog = state.listening, state.known.backlog if state.listening else 0
            out.unix.mode = os.lstat(state.known.name).st_mode & 0o777 if state.known.inode is not None else 0
        if state.sends_to_name:
            out.unix.connected_to = state.peer_name
        elif state.peer is not None:
            out.unix.has_peer = True
            out.unix.peer = image.index_of(state.peer, state.peer.holders[0].fd)
        else:
            out.unix.peer_gone = _peer_is_closed(state)

    def check(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """What the image says can be, and its names are free."""
        found = list(_check_ends(mine))
        yield from found or unix_names.check(mine)

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Those with a name first, then pair by pair."""
        with unix_names.Named(opening) as named:
            named.bind_all(mine)
            for index, description in mine.items():
                if index not in opening.slots:
                    _open(index, description, opening, named)


def _check_ends(mine: dict[int, Description]) -> Iterator[Reason]:
    for index, description in mine.items():
        unix = description.unix
        if unix.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            yield Reason("the image", f"it has a unix socket of type {unix.type}, which there is not")
        if unix.has_peer:
            other = mine.get(unix.peer)
            if other is None or not other.unix.has_peer or other.unix.peer != index or unix.peer == index:
                yield Reason("the image", f"the unix socket {index} and its other end do not fit together")
        yield from sockets.check_options(unix.options, "a unix socket")


def _open(index: int, description: Description, opening: Opening, named: unix_names.Named) -> None:
    unix = description.unix
    with naming(description):
        if unix.has_peer:
            _open_pair(opening, index, unix.peer, named)
        elif unix.peer_gone:
            _open_widow(opening, index)
        else:
            alone = socket.socket(socket.AF_UNIX, unix.type)
            sockets.set_options(alone, unix.options, OPTIONS)
            opening.place(index, alone.detach())


def _pair(tree: GrabbedDescriptors) -> None:
    """Say of every socket what the kernel knows of it, once; not done under the freeze."""
    mine = tree.of(Unix)
    if not mine or mine[0].state.known is not None:
        return
    by_inode = {held.stat.st_ino: held for held in mine}
    for held in mine:
        assert held.state.diagnosis
        held.state.known = held.state.diagnosis.sockets.get(held.stat.st_ino)
        if held.state.known and held.state.known.peer:
            held.state.peer = by_inode.get(held.state.known.peer)


def _peer_is_closed(state: UnixState) -> bool:
    """Whether the other end is closed. One that nobody has accepted yet has no inode either."""
    if state.known is None or state.known.peer != 0:
        return False
    datagrams = state.socket.family.type == socket.SOCK_DGRAM
    return datagrams or state.known.shutdown == RCV_SHUTDOWN | SEND_SHUTDOWN


def _peek_stream(copy: int, state: UnixState) -> None:
    if state.socket.queued:
        content, flags, *_ = sockets.peek(copy, state.socket.queued)
        state.messages = [content]
        if flags & socket.MSG_CTRUNC or len(content) != state.socket.queued:
            state.lost = "descriptors or credentials are on their way to it (SCM_RIGHTS), which is not kept yet"


def _peek_messages(copy: int, state: UnixState) -> None:
    """Take the messages of a queue one by one, without taking them out of it."""
    sequenced = state.socket.family.type == socket.SOCK_SEQPACKET
    with suppress(BlockingIOError), sockets.peeking_on(copy):  # the end of the queue
        # At the end a datagram socket says EAGAIN, but one with a connection that has ended says 0 again and again.
        while not sequenced or sum(map(len, state.messages)) < state.socket.queued:
            message, flags, *_ = sockets.peek(copy, LONGEST_MESSAGE, socket.MSG_TRUNC)
            state.messages.append(message)
            if flags & socket.MSG_CTRUNC:
                state.lost = "descriptors or credentials are on their way to it (SCM_RIGHTS), which is not kept yet"
            if flags & socket.MSG_TRUNC:
                state.lost = f"a message of more than {LONGEST_MESSAGE} bytes is on its way to it"


def _open_pair(opening: Opening, first: int, second: int, named: unix_names.Named) -> None:
    one, other = opening.image.descriptions[first].unix, opening.image.descriptions[second].unix
    near, far = named.pair(one, other)
    with near, far:
        _fill(far, one)
        _fill(near, other)
        sockets.set_options(near, one.options, OPTIONS)
        sockets.set_options(far, other.options, OPTIONS)
        _shut(near, one)
        _shut(far, other)
        opening.place(first, near.detach())
        opening.place(second, far.detach())


def _open_widow(opening: Opening, index: int) -> None:
    """A socket whose other end is closed."""
    unix = opening.image.descriptions[index].unix
    near, far = socket.socketpair(socket.AF_UNIX, unix.type)
    with near:
        with far:
            _fill(far, unix)
            sockets.set_options(near, unix.options, OPTIONS)
            if unix.reset:
                near.send(b"x")  # an end that is closed with unread data resets the other (net/unix/af_unix.c)
        opening.place(index, near.detach())


def _shut(sock: socket.socket, unix: UnixMessage) -> None:
    if unix.shut_read:
        sock.shutdown(socket.SHUT_RD)
    if unix.shut_write:
        sock.shutdown(socket.SHUT_WR)


def _fill(sender: socket.socket, unix: UnixMessage) -> None:
    """Send a receive queue again, from its other end."""
    sender.setblocking(False)
    for message in unix.messages:
        left = memoryview(message)
        while True:
            try:
                left = left[sender.send(left) :]
            except BlockingIOError:
                if not sockets.enlarge(sender, socket.SO_SNDBUF):
                    raise RestoreFailed("a unix socket does not take what was on its way to it") from None
            if not left:
                break
    sockets.let_go_of_size(sender)

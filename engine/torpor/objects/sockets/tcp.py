"""TCP sockets, MPTCP's included: listeners, connections within the tree, and connections to the outside.

==========  ==============================================================================================
listener    bound and listening again, with its options; connections from outside that nobody has accepted
            yet are lost
inside      both ends in the tree: connected again between the same addresses, with what was received and
            not yet read, and with shutdowns. Data in flight is delivered first
            (`torpor.objects.sockets.tcp_flow`); refused if there is no room for it.
pending     one end in the tree, which has sent nothing, and a listener of the tree that has not accepted it:
            connected again, in no certain order. Refused if it has sent something: nobody can read that.
outside     its peer cannot be stopped and does not know of the restore: what was received can still be
            read, then the program sees what it sees when a peer resets (ECONNRESET); if the peer had ended
            its side before, the end. getsockname() then gives an address of the loopback. With --tcp=keep
            it may go on: `torpor.objects.sockets.tcp_repair`.
ended       both sides were shut: reads give the rest and the end, writes EPIPE
closed      neither connected nor listening. It may have a port, or still name one that it has released
==========  ==============================================================================================

States and counters are those of tcp(7), TCP_INFO; include/uapi/linux/tcp.h has the layout. Restoring the
connections is in `torpor.objects.sockets.tcp_connections`.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, TcpSocket, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    copy_unless_ended,
    descriptor_name,
    first_few,
)
from torpor.objects.opening import Opening
from torpor.objects.sockets import (
    addresses,
    common,
    peeking,
    tcp_backlog,
    tcp_connections,
    tcp_flow,
    tcp_ports,
    tcp_released,
    tcp_repair,
)
from torpor.objects.sockets.addresses import Address
from torpor.objects.sockets.common import Key, SocketState
from torpor.objects.sockets.tcp_states import State
from torpor.remote.sys import pidfd_open, syscall

OPTIONS: dict[int, dict[Key, int]] = {
    socket.AF_INET: tcp_connections.OPTIONS4,
    socket.AF_INET6: tcp_connections.OPTIONS6,
}
PROTOCOLS = (0, socket.IPPROTO_TCP, tcp_ports.IPPROTO_MPTCP)


_SIOCATMARK = 0x8905
"""An ioctl: whether the next byte follows an urgent one (include/uapi/asm-generic/sockios.h)."""


WE_ENDED = frozenset({State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSING, State.LAST_ACK})
WAITING = frozenset({State.ESTABLISHED, State.FIN_WAIT1, State.FIN_WAIT2})
"""States of an end whose connection was not accepted."""
PEER_ENDED = frozenset({State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING})


class Info:
    """A struct tcp_info."""

    SIZE = 192

    def __init__(self, raw: bytes) -> None:
        raw = raw.ljust(self.SIZE, b"\0")
        self.state = raw[0]
        self.waiting: int = struct.unpack_from("=I", raw, 24)[0]
        """tcpi_unacked: for a listener, the number of connections that were not accepted."""
        self.backlog: int = struct.unpack_from("=I", raw, 28)[0]
        """tcpi_sacked: for a listener, the backlog of listen()."""
        self.acked: int = struct.unpack_from("=Q", raw, 120)[0]
        self.received: int = struct.unpack_from("=Q", raw, 128)[0]
        self.unsent: int = struct.unpack_from("=I", raw, 144)[0]


@dataclass
class TcpState:
    """A TCP socket as it was."""

    socket: SocketState
    info: Info
    local: bytes
    """struct sockaddr."""
    remote: bytes
    """Empty if it is not connected."""
    layer: bytes
    """An upper layer protocol in the kernel (TCP_ULP), such as ``tls``."""
    outgoing: int = 0
    """Bytes that were written and that the other end has not acknowledged."""
    received: bytes = b""
    urgent: bool = False
    """Whether an urgent byte is in the queue, or data behind one."""
    sequence: tuple[int, int] | None = None
    """For MPTCP, the sequence numbers up to which it has written and received."""
    peer: OpenFile[TcpState] | None = None
    """The other end, if it is in the tree: the socket itself, if it is connected to itself."""
    waits: bool = False
    """Whether a listener of the tree has not accepted it yet."""
    deferred: bool = False
    """Whether the listener cannot accept it yet (TCP_DEFER_ACCEPT)."""
    unread: int = 0
    """Bytes that it has sent to that listener."""
    released: bool = False
    """Whether its address names a port that it does not hold any more."""
    kept: str = ""
    """The name under which its connection to the outside is kept."""

    @property
    def mptcp(self) -> bool:
        """Whether it is MPTCP: then TCP_INFO describes its first subflow only."""
        return self.socket.family.protocol == tcp_ports.IPPROTO_MPTCP

    @property
    def ends(self) -> tuple[Address, Address]:
        """The addresses of this end and of the other end."""
        return addresses.address(self.local), addresses.address(self.remote)


class Tcp(Kind[TcpState]):
    """A TCP socket."""

    field = "tcp"
    may_be_under_way = True

    def matches(self, seen: Seen) -> bool:
        """By family, type and protocol."""
        family = seen.family
        return (
            family is not None
            and family.family in OPTIONS
            and family.type == socket.SOCK_STREAM
            and family.protocol in PROTOCOLS
        )

    def grab(self, open_file: OpenFile[TcpState], pidfd: int, *, content: bool) -> TcpState:
        """Read names, options, counters and the receive queue."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            info = Info(common.getsockopt(copy, socket.IPPROTO_TCP, socket.TCP_INFO, Info.SIZE))
            listening = info.state == State.LISTEN
            family = common.number(copy, socket.SOL_SOCKET, socket.SO_DOMAIN)
            state = TcpState(
                common.look(copy, OPTIONS[family], listening=listening),
                info,
                addresses.local_name(copy),
                addresses.peer_name(copy),
                common.if_known(copy, socket.IPPROTO_TCP, common.TCP_ULP, 16) or b"",
            )
            if not listening:
                _count(copy, state)
            if _state(state) == TcpSocket.CLOSED and addresses.address(state.local).port:
                v6only = any(state.socket.options.get(tcp_ports.V6ONLY, b""))
                state.released = tcp_released.has_released(copy, state.local, v6only=v6only)
            if content:
                _take(copy, state)
        return state

    def finish(self, mine: list[OpenFile[TcpState]], tree: GrabbedDescriptors) -> None:
        """Find the other end of each connection."""
        connected = {open_file.state.ends: open_file for open_file in mine if open_file.state.remote}
        for (local, remote), open_file in connected.items():
            open_file.state.peer = connected.get((remote, local))
        _find_waiting(mine)
        if tree.content:
            for open_file in mine:
                if open_file.state.peer and _under_way(open_file.state, open_file.state.peer.state):
                    _bring(open_file, open_file.state.peer)

    def outside(self, open_file: OpenFile[TcpState], tree: GrabbedDescriptors) -> str:
        """Only for standard input, output and error: other connections to the outside are reset."""
        if not open_file.stdio or not open_file.state.remote or open_file.state.peer is not None:
            return ""
        return f"a connection to {open_file.state.ends[1]}"

    def unsupported(self, open_file: OpenFile[TcpState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """No data may be in flight that neither end has."""
        state = open_file.state
        yield from common.unsupported(state.socket, tree.asked(open_file.references[0].pid))
        layer = state.layer.strip(b"\0").decode(errors="replace")
        if layer not in ("", "mptcp"):
            yield Unsupported(f"the kernel does {layer} for it (TCP_ULP), which is not kept", "do it in the program")
        if state.waits and (sent := state.unread + state.outgoing):
            yield Unsupported(
                f"{sent} bytes were sent on its connection, which {state.ends[1]} in this tree has not accepted yet:"
                " they cannot be read before that",
                "try again when it was accepted",
                passing=True,
            )
        if not tree.content:
            return
        # MPTCP counts the peer's FIN as a byte.
        end = int(state.mptcp and bool(state.socket.events & select.POLLRDHUP))
        if state.urgent or not 0 <= state.socket.queued - len(state.received) <= end:
            yield Unsupported(
                "urgent data is in its queue, which is not kept", "try again when it was read", passing=True
            )
        if state.peer is open_file and state.info.state != State.ESTABLISHED:
            yield Unsupported("its connection to itself is just ending", "try again", passing=True)
        elif state.peer is not None and (under_way := _under_way(state, state.peer.state)):
            yield Unsupported(
                f"{under_way} bytes are on their way to its other end in this tree, which has no room for them",
                "try again when the program has read more",
                passing=True,
            )

    def unread(self, open_file: OpenFile[TcpState]) -> int:
        """Its receive queue."""
        return len(open_file.state.received)

    def only_one(self, open_file: OpenFile[TcpState]) -> str:
        """The port of a listener, or of an end whose other end is in the tree."""
        state = open_file.state
        inside = state.info.state == State.LISTEN or state.peer is not None
        return "its port" if inside and addresses.address(state.local).port else ""

    def describe(
        self, open_file: OpenFile[TcpState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its state, and what it has received."""
        state, tcp = open_file.state, out.tcp
        tcp.family, tcp.protocol = state.socket.family.family, state.socket.family.protocol
        tcp.local, tcp.remote = state.local, state.remote
        tcp.received = state.received
        tcp.options.extend(common.non_default_options(state.socket.family, state.socket.options, OPTIONS[tcp.family]))
        tcp.state = _state(state)
        hung_up = bool(state.socket.events & select.POLLRDHUP)
        if tcp.state == TcpSocket.LISTEN:
            tcp.backlog = state.info.backlog
        elif tcp.state == TcpSocket.OUTSIDE:
            tcp.peer_done = bool(state.remote) and state.info.state in PEER_ENDED
            tcp.shut_write = state.info.state in WE_ENDED
            tcp.shut_read = hung_up and bool(state.kept) and not tcp.peer_done
            tcp.kept = state.kept
        elif tcp.state == TcpSocket.INSIDE:
            assert state.peer
            tcp.peer = image.index_of(state.peer, state.peer.references[0].fd)
            tcp.connected = _missing(state, state.peer.state) == 1 and not state.mptcp
            tcp.shut_read = hung_up and not _ended(state.peer.state)
            tcp.shut_write = _ended(state)
        elif tcp.state == TcpSocket.CLOSED:
            tcp.released = state.released
        elif tcp.state == TcpSocket.PENDING:
            tcp.deferred = state.deferred
            tcp.shut_read = hung_up
            tcp.shut_write = state.info.state in WE_ENDED

    def notices(self, mine: Sequence[OpenFile[TcpState]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Connections that the woken program will see reset, and those that were not accepted."""
        served = {
            addresses.address(open_file.state.local).port
            for open_file in mine
            if open_file.state.info.state == State.LISTEN
        }
        lost: list[str] = []
        asked: set[int] = set()
        for open_file in mine:
            if not open_file.state.remote or _state(open_file.state) != TcpSocket.OUTSIDE or open_file.state.kept:
                continue
            if self.outside(open_file, tree):
                continue
            here, there = open_file.state.ends
            if here.port in served:
                asked.add(here.port)
            else:
                lost.append(f"{descriptor_name(open_file.references[0])}, to {there}")
        if lost:
            yield f"TCP connections to others will be seen reset by the woken program: {first_few(lost)}"
        if asked:
            yield f"{CLIENTS} {', '.join(map(str, sorted(asked)))}"
        waiting = sum(open_file.state.info.waiting for open_file in mine if open_file.state.info.state == State.LISTEN)
        if (others := waiting - sum(open_file.state.waits for open_file in mine)) > 0:
            yield f"TCP connections from others that were not accepted yet are lost: {others}"

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The image must be consistent."""
        return tcp_connections.validate({index: description.tcp for index, description in mine.items()})

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """The addresses and ports must be available here."""
        return tcp_ports.validate({index: description.tcp for index, description in mine.items()})

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make listeners first, then the connections."""
        tcp_connections.open_all(mine, opening)


CLIENTS = "TCP connections that others made will be seen reset, at port"


def client_ports(notice: str) -> set[int]:
    """The TCP ports on which a tree had clients from outside, from a snapshot's notice about them.

    Args:
        notice: one of `Snapshot.notices`; a notice about something else gives no ports.
    """
    return set(map(int, notice.removeprefix(CLIENTS).split(","))) if notice.startswith(CLIENTS) else set()


def _find_waiting(mine: list[OpenFile[TcpState]]) -> None:
    """Find the ends whose connections a listener of the tree has not accepted yet."""
    listeners = [
        addresses.address(open_file.state.local) for open_file in mine if open_file.state.info.state == State.LISTEN
    ]
    alone = []
    for open_file in mine:
        state = open_file.state
        if state.remote and state.peer is None and not state.mptcp and state.info.state in WAITING:
            there = state.ends[1]
            if any(one.port == there.port and (one.host == there.host or one.host.is_unspecified) for one in listeners):
                alone.append(state)
    found = tcp_backlog.waiting() if alone else {}
    for state in alone:
        here, there = state.ends
        if (one := found.get((there[:2], here[:2]))) is not None:
            state.waits, state.unread, state.deferred = True, one.received, one.deferred


def choose_for_repair(tree: GrabbedDescriptors) -> None:
    """Choose the connections to the outside that can go on; see `torpor.objects.sockets.tcp_repair`."""
    for open_file in tree.of(Tcp):
        state = open_file.state
        outside = _state(state) == TcpSocket.OUTSIDE and bool(state.remote)
        ours = not open_file.stdio and open_file.under_way_to is None
        plain = not state.mptcp and not state.layer.strip(b"\0")
        if outside and ours and plain and state.info.state in tcp_repair.GO_ON:
            state.kept = tcp_repair.new_name()


def hold_for_repair(tree: GrabbedDescriptors, hold: tcp_repair.Hold) -> None:
    """Copy the descriptors of those connections, while the tree is still frozen."""
    for open_file in tree.of(Tcp):
        if open_file.state.kept:
            hold.take(open_file.state.kept, open_file.references[0])


def arm_reset(tree: GrabbedDescriptors) -> None:
    """Make the tree's connections end at once when it is killed, without waiting on their ports (TIME_WAIT).

    Only for a tree that is killed next: this sets SO_LINGER. A connection to the outside with unacknowledged bytes is
    left as it is: the kernel still delivers them.
    """
    linger = struct.pack("ii", 1, 0)
    for open_file in tree.of(Tcp):
        if open_file.under_way_to is not None or open_file.state.kept:
            continue  # no process has it, or it will go on
        if (copy := copy_unless_ended(open_file.references[0])) is None:
            continue
        try:
            if addresses.peer_name(copy) and (open_file.state.peer or not common.queued(copy, termios.TIOCOUTQ)):
                syscall(NR.setsockopt, copy, socket.SOL_SOCKET, socket.SO_LINGER, linger, len(linger))
        finally:
            os.close(copy)


def _state(state: TcpState) -> TcpSocket.State:
    if state.info.state == State.LISTEN:
        return TcpSocket.LISTEN
    if state.waits:
        return TcpSocket.PENDING
    if state.remote:
        return TcpSocket.INSIDE if state.peer is not None else TcpSocket.OUTSIDE
    if state.info.state == State.SYN_SENT:
        return TcpSocket.OUTSIDE
    # A new socket reports POLLHUP too, but only one that was connected reports POLLRDHUP (tcp_poll()).
    if state.socket.events & select.POLLRDHUP:
        return TcpSocket.OUTSIDE if state.socket.events & select.POLLERR else TcpSocket.ENDED
    return TcpSocket.CLOSED


def _ended(state: TcpState) -> bool:
    """Whether an end of a connection in the tree has shut down its writing side."""
    if state.mptcp and state.peer is not None:
        return bool(state.peer.state.socket.events & select.POLLRDHUP)
    return state.info.state in WE_ENDED


def _count(copy: int, state: TcpState) -> None:
    """Read the counters of an end of a connection."""
    state.info = Info(common.getsockopt(copy, socket.IPPROTO_TCP, socket.TCP_INFO, Info.SIZE))
    state.outgoing = common.queued(copy, termios.TIOCOUTQ)
    state.sequence = tcp_flow.sequence(copy) if state.mptcp else None


def _take(copy: int, state: TcpState) -> None:
    """Read what an end has received."""
    if state.socket.peek_offset >= 0:
        return
    if state.socket.queued:
        state.received = peeking.peek(copy, state.socket.queued).content
    state.urgent = bool(state.socket.events & select.POLLPRI)
    if not state.urgent and not state.mptcp and state.remote and common.queued(copy, _SIOCATMARK):
        # Data behind the mark is counted only after something was read there (tcp_inq() in net/ipv4/tcp.c).
        state.urgent = bool(state.socket.events & select.POLLIN and peeking.peek(copy, 1).content)


def _bring(sender: OpenFile[TcpState], receiver: OpenFile[TcpState]) -> None:
    """Let one end receive all that the other has sent, and read it there."""
    with _ours(sender) as near, _ours(receiver) as far:

        def under_way() -> int:
            _count(near.fileno(), sender.state)
            _count(far.fileno(), receiver.state)
            return _under_way(sender.state, receiver.state)

        tcp_flow.bring(near, far, under_way)
        receiver.state.socket.queued = common.queued(far.fileno())
        receiver.state.socket.events = common.events(far.fileno())
        _take(far.fileno(), receiver.state)


@contextmanager
def _ours(open_file: OpenFile[TcpState]) -> Iterator[socket.socket]:
    """A copy of a socket for our use."""
    pidfd = pidfd_open(open_file.references[0].pid)
    try:
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            sock = socket.socket(fileno=copy)
            try:
                yield sock
            finally:
                sock.detach()
    finally:
        os.close(pidfd)


def _under_way(sender: TcpState, receiver: TcpState) -> int:
    """Bytes that were written and are not in the receiver's queue yet."""
    if sender.sequence and receiver.sequence:
        return sender.sequence[0] - receiver.sequence[1]
    if sender.mptcp:
        return sender.outgoing
    missing = _missing(sender, receiver)
    return max(sender.info.unsent, missing - 1 if missing > 1 else 0)


def _missing(sender: TcpState, receiver: TcpState) -> int:
    """Bytes that one end has written and the other has not received; the connecting end counts its SYN as a byte."""
    return sender.info.acked + sender.outgoing - receiver.info.received

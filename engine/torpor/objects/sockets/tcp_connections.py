"""Restoring TCP sockets: listeners on their ports, connections within the tree, and ends of connections to the outside.

A connection within the tree is made as it was: one end listens, the other connects from its old port. A temporary
listener accepts it, before the tree's own sockets have their addresses: of several listeners at a port the kernel would
choose one itself, and options that were set since (TCP_DEFER_ACCEPT, IP_MINTTL) may keep a connection away from the
listener that had accepted it. Other clients that connect meanwhile are recognized by their address and reset. A socket
that is connected to itself connects to itself again.

Until all sockets are made SO_REUSEADDR is on for each of them: they had their ports one after the other, while others
were not bound yet or did not listen any more. A listener whose connections were not accepted yet gets its own options
before these are made, since they inherit them.

An end of a connection to the outside is connected to a socket of ours, which sends what had been received, and then
resets or closes the connection.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, TcpSocket
from torpor.objects.opening import Opening, naming
from torpor.objects.sockets import addresses, buffers, common, tcp_flow, tcp_ports, tcp_released, tcp_repair
from torpor.objects.sockets.addresses import Address
from torpor.objects.sockets.common import Key
from torpor.objects.sockets.tcp_ports import IPPROTO_MPTCP

IPV6 = 6
OPTIONS4: dict[Key, int] = {**common.GENERAL, **common.TCP}
OPTIONS6: dict[Key, int] = {**OPTIONS4, **common.TCP6}
BEFORE_MPTCP_CONNECTS: frozenset[Key] = frozenset(
    {
        tcp_ports.REUSE,
        tcp_ports.REUSE_PORT,
        tcp_ports.DEVICE,
        tcp_ports.BIND_NO_PORT,
        tcp_ports.PORT_RANGE,
        tcp_ports.FREEBIND,
        tcp_ports.TRANSPARENT,
    }
)
"""Options that are fixed once MPTCP is connected (net/mptcp/sockopt.c): they do not matter any more."""
DEFER: Key = (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
AT_LAST: frozenset[Key] = tcp_ports.REUSES | {
    DEFER,
    (socket.IPPROTO_IP, 21),  # IP_MINTTL
    (socket.IPPROTO_IPV6, 73),  # IPV6_MINHOPCOUNT
}
"""Options of listeners that would keep their own unaccepted connections away, or keep them from being accepted."""
MANY = 4096
"""A backlog above the tree's unaccepted connections, and above those that come from outside at a restore."""

T = TypeVar("T")

PATIENCE = 2.0
"""How long to wait for a port that a closed connection still holds (TIME_WAIT on the loopback: 1 s), in seconds."""
PAUSE = 0.02


# ----------------------------------------------------------------------------------------------------- check


def validate(mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    """Say which of these are invalid."""
    for index, tcp in mine.items():
        yield from _validate_one(index, tcp, mine)


def _validate_one(index: int, tcp: TcpSocket, mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    try:
        socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol).close()
    except OSError as error:
        what = "MPTCP" if tcp.protocol == IPPROTO_MPTCP else f"address family {tcp.family}"
        yield Reason("a TCP socket of the image", f"{what} is not available here: {error.strerror}")
        return
    if tcp.family not in (socket.AF_INET, socket.AF_INET6):
        yield Reason("the image", f"it has a TCP socket of family {tcp.family}")
    yield from common.validate_options(tcp.options, "a TCP socket")
    try:
        addresses.address(tcp.local)
        if tcp.state == TcpSocket.INSIDE:
            peer = mine.get(tcp.peer)
            fits = (
                peer is not None
                and peer.state == TcpSocket.INSIDE
                and peer.peer == index
                and (index == tcp.peer) == (addresses.address(tcp.local) == addresses.address(tcp.remote))
                and addresses.address(peer.local) == addresses.address(tcp.remote)
            )
            if not fits:
                yield Reason("the image", f"the TCP socket {index} and its other end do not fit together")
        listeners = [other for other in mine.values() if other.state == TcpSocket.LISTEN]
        if tcp.state == TcpSocket.PENDING and not tcp_ports.listener_for(TcpSocket(local=tcp.remote), listeners):
            yield Reason("the image", f"the TCP socket {index} waits to be accepted, but has no listener")
    except ValueError as error:
        yield Reason("the image", f"it has a TCP socket with {error}")
    if tcp.kept and not (tcp_repair.is_name(tcp.kept) and tcp.state == TcpSocket.OUTSIDE):
        yield Reason("the image", "it has a TCP connection that has an invalid name")
    if tcp.released and tcp.state != TcpSocket.CLOSED:
        yield Reason(
            "the image", f"the TCP socket {index} is said to have released its port, and is connected or listens"
        )
    if tcp.state not in TcpSocket.State.values()[1:]:
        yield Reason("the image", "it has a TCP socket in a state that is not known")


# ------------------------------------------------------------------------------------------------------ open


@dataclass
class _Making:
    """The state of the restore of TCP sockets."""

    mine: dict[int, Description]
    opening: Opening
    own: list[tuple[TcpSocket, socket.socket]] = field(default_factory=list)
    """The tree's own listeners."""
    moment: ExitStack = field(default_factory=ExitStack)
    """Sockets that are closed when all are made."""


def open_all(mine: dict[int, Description], opening: Opening) -> None:
    """Make all TCP sockets of an image, and leave nothing else."""
    making = _Making(mine, opening)
    with making.moment:
        _open_released(making)  # before others have their ports
        _open_inside(making)
        _open_bound(making)
        for index, description in mine.items():
            with naming(description):
                if description.tcp.kept and _open_by_repair(making, index, description.tcp):
                    continue
                elif description.tcp.state in (TcpSocket.OUTSIDE, TcpSocket.ENDED):
                    _open_end(making, index, description.tcp)
        _set_inherited(making)
        for deferred in (False, True):  # from now on nothing may be accepted
            if deferred:
                _set_deferring(making)
            for index, description in mine.items():
                if description.tcp.state == TcpSocket.PENDING and description.tcp.deferred == deferred:
                    with naming(description):
                        _open_pending(making, index, description.tcp)
        for tcp, sock in making.own:
            sock.listen(tcp.backlog)
        for index, description in mine.items():
            if description.tcp.state in (*tcp_ports.BOUND, TcpSocket.INSIDE):
                with naming(description), opening.socket(index) as sock:
                    _set_last_options(sock, description.tcp)


def _open_inside(making: _Making) -> None:
    """Make the connections within the tree, those to one address at a time."""
    pairs: defaultdict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, description in making.mine.items():
        tcp = description.tcp
        if tcp.state == TcpSocket.INSIDE and index == tcp.peer:
            with naming(description):
                _open_to_itself(making, index, tcp)
        elif tcp.state == TcpSocket.INSIDE and index < tcp.peer:
            client, server = (tcp.peer, index) if _is_server(making, index, tcp.peer) else (index, tcp.peer)
            pairs[tcp_ports.place(making.mine[server].tcp)].append((client, server))
    for mine in pairs.values():
        first = making.mine[mine[0][1]]
        with naming(first), _listening(first.tcp) as listener:
            for client, server in mine:
                with naming(making.mine[server]):
                    _open_pair(making, client, server, listener)


def _open_released(making: _Making) -> None:
    for index, description in making.mine.items():
        if description.tcp.released:
            with naming(description), tcp_released.make(description.tcp) as sock:
                _set_options(sock, description.tcp, AT_LAST)
                making.opening.place(index, sock.dup().detach())


def _open_bound(making: _Making) -> None:
    """Bind all sockets before any listens: a listening socket keeps others from its port."""
    alone = {
        index: one for index, one in making.mine.items() if one.tcp.state in tcp_ports.BOUND and not one.tcp.released
    }
    shared = tcp_ports.shared(one.tcp for one in alone.values())
    pending = [one.tcp for one in making.mine.values() if one.tcp.state == TcpSocket.PENDING]
    awaited = {addresses.address(tcp.remote).port for tcp in pending}
    made: dict[int, socket.socket] = {}
    for index, description in alone.items():
        tcp = description.tcp
        with naming(description):
            sock = made[index] = making.moment.enter_context(
                socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol)
            )
            where = addresses.address(tcp.local)
            later = tcp_ports.AFTER_CONNECTING if where.port in awaited else frozenset()
            if where.port or tcp.state == TcpSocket.LISTEN:
                share = where.port in shared or tcp_ports.has_option(tcp, tcp_ports.REUSE_PORT)
                tcp_ports.bind(sock, tcp, where, share=share, but=later)
            else:
                tcp_ports.set_early(sock, tcp)
            # Sockets that a listener accepts at once inherit its options; listen() checks the port once more.
            _set_options(sock, tcp, AT_LAST | later)
    for index, description in alone.items():
        if description.tcp.state == TcpSocket.LISTEN:
            with naming(description):
                made[index].listen(MANY)
                making.own.append((description.tcp, made[index]))
    for index, description in alone.items():
        with naming(description):
            making.opening.place(index, made[index].dup().detach())


def _open_pair(making: _Making, first: int, second: int, listener: socket.socket) -> None:
    """Connect two ends again: the first connects, the second was accepted."""
    client, server = making.mine[first].tcp, making.mine[second].tcp
    with _connected(client, server) as near, _accepted(listener, client, server) as far:
        _fill_inside(far, near, client.received)
        _fill_inside(near, far, server.received)
        _set_options(near, client, tcp_ports.REUSES)
        _set_options(far, server, tcp_ports.REUSES)
        _shut(near, client)
        _shut(far, server)
        making.opening.place(first, near.detach())
        making.opening.place(second, far.detach())


def _open_to_itself(making: _Making, index: int, tcp: TcpSocket) -> None:
    """Connect a socket to its own address: its two SYNs cross (simultaneous open, RFC 9293)."""
    with _connected(tcp, tcp) as sock:
        _fill_inside(sock, sock, tcp.received)
        _set_options(sock, tcp, tcp_ports.REUSES)
        _shut(sock, tcp)
        making.opening.place(index, sock.detach())


def _is_server(making: _Making, first: int, second: int) -> bool:
    """Whether the first of two ends is the server. For MPTCP the tree's listeners show it."""
    one, other = making.mine[first].tcp, making.mine[second].tcp
    if one.connected != other.connected:
        return other.connected
    listeners = (other.tcp for other in making.mine.values() if other.tcp.state == TcpSocket.LISTEN)
    return tcp_ports.listener_for(one, listeners) is not None


def _open_pending(making: _Making, index: int, tcp: TcpSocket) -> None:
    """Connect an end again that its listener has not accepted yet."""
    with _connected(tcp, TcpSocket(local=tcp.remote, family=tcp.family)) as sock:
        _set_options(sock, tcp)
        _shut(sock, tcp)
        making.opening.place(index, sock.detach())


@contextmanager
def _listening(server: TcpSocket) -> Iterator[socket.socket]:
    """A temporary listener at the address of an end that was accepted."""
    where = addresses.address(server.local)
    share = tcp_ports.has_option(server, tcp_ports.REUSE_PORT)
    with socket.socket(server.family, socket.SOCK_STREAM, server.protocol) as sock:

        def bind() -> None:
            tcp_ports.bind(sock, server, where, share=share)
            sock.listen()

        _patiently(bind, f"{where}, where a connection of the tree ends")
        yield sock


def _connected(client: TcpSocket, server: TcpSocket) -> socket.socket:
    """Make the connecting end, on its old port."""
    here, there = addresses.address(client.local), addresses.address(server.local)

    def connect() -> socket.socket:
        try:
            return tcp_ports.connect(client, here, there, PATIENCE)
        except OSError as error:
            # ECONNREFUSED: it is connected to itself, and the kernel has chosen another port.
            if error.errno not in (
                errno.EADDRINUSE,
                errno.EADDRNOTAVAIL,
                errno.ECONNREFUSED,
                *buffers.NOT_HERE,
            ):
                raise
            return _connect_bound(client, here, there)

    return _patiently(connect, f"{here}, from where a connection of the tree leads to {there}")


def _connect_bound(client: TcpSocket, here: Address, there: Address) -> socket.socket:
    """Connect from a port that the kernel does not choose by itself here."""
    sock = socket.socket(client.family, socket.SOCK_STREAM, client.protocol)
    try:
        tcp_ports.bind(sock, client, here, share=tcp_ports.has_option(client, tcp_ports.REUSE_PORT))
        sock.settimeout(PATIENCE)
        sock.connect(addresses.for_python(there, client.family))
    except BaseException:
        sock.close()
        raise
    return sock


def _accepted(listener: socket.socket, client: TcpSocket, server: TcpSocket) -> socket.socket:
    """Accept the other end. Reset other connections in the queue."""
    wanted = addresses.address(client.local)
    blocking = os.get_blocking(listener.fileno())  # of the description, which the slot shares
    duplicate = listener.dup()
    deadline = time.monotonic() + PATIENCE
    try:
        while (left := deadline - time.monotonic()) > 0:
            duplicate.settimeout(left)
            sock, _ = duplicate.accept()
            peer = addresses.peer_name(sock.fileno())  # empty: it was reset meanwhile
            if peer and addresses.address(peer) == wanted:
                return sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, tcp_ports.RESET)
            sock.close()
    except TimeoutError:
        pass
    finally:
        duplicate.close()
        os.set_blocking(listener.fileno(), blocking)
    where = addresses.address(server.local)
    raise RestoreFailed(f"the connection from {wanted} to {where} in the tree was not made within {PATIENCE:g} s")


def _open_by_repair(making: _Making, index: int, tcp: TcpSocket) -> bool:
    """Make an end whose connection goes on when the tree is released, if it can. Returns whether it does."""
    opening, where = making.opening, addresses.address(tcp.remote)
    state = tcp_repair.find(tcp)
    if state is None:
        opening.warnings.append(
            f"the TCP connection to {where} was kept for one restore on its host, by root: it is reset"
        )
        return False
    try:
        sock = tcp_repair.make(tcp, state)
        _set_options(sock, tcp)
    except (OSError, RestoreFailed) as error:
        why = error.strerror if isinstance(error, OSError) else error
        opening.warnings.append(f"the TCP connection to {where} is reset, as it cannot go on: {why}")
        return False
    opening.place(index, sock.detach())

    def let_go() -> None:
        with opening.socket(index) as kept:
            tcp_repair.let_go(kept, tcp, state)

    opening.at_last.append(let_go)
    return True


def _open_end(making: _Making, index: int, tcp: TcpSocket) -> None:
    """Make an end whose peer is gone: it has reset or closed the connection."""
    if addresses.address(tcp.local).host.version == IPV6:
        host = "::1"
    else:  # IPv6 may be off: an IPv6 socket that used IPv4 still does
        host = "::ffff:127.0.0.1" if tcp.family == socket.AF_INET6 else "127.0.0.1"
    with (
        socket.socket(tcp.family, socket.SOCK_STREAM) as listener,
        socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol) as near,
    ):
        listener.bind((host, 0))
        listener.listen(1)
        tcp_ports.set_early(near, tcp)
        near.settimeout(PATIENCE)
        near.connect(listener.getsockname())
        client = TcpSocket(local=addresses.local_name(near.fileno()))
        with _accepted(listener, client, TcpSocket(local=addresses.local_name(listener.fileno()))) as far:
            left = _fill(far, near, tcp.received)
            unsent = partial(common.queued, far.fileno(), tcp_flow.SIOCOUTQNSD)
            _set_options(near, tcp)
            if not left and (tcp.state == TcpSocket.ENDED or tcp.peer_done):
                far.shutdown(socket.SHUT_WR)
                if tcp.state == TcpSocket.ENDED or tcp.shut_write:
                    near.shutdown(socket.SHUT_WR)
            else:
                if unsent():
                    tcp_flow.bring(far, near, unsent)
                if lost := left + unsent():
                    there = addresses.address(tcp.remote)
                    making.opening.warnings.append(
                        f"the TCP connection to {there} is reset before the last {lost} bytes that it had received and"
                        " the program had not read: the kernel has no room for them"
                    )
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, tcp_ports.RESET)
        making.opening.place(index, near.detach())


def _set_options(sock: socket.socket, tcp: TcpSocket, but: frozenset[Key] = frozenset()) -> None:
    """Set its options to what they were, except those in `but`."""
    wanted = OPTIONS6 if tcp.family == socket.AF_INET6 else OPTIONS4
    common.set_options(sock, tcp.options, wanted, _fixed(tcp) | but)


def _set_last_options(sock: socket.socket, tcp: TcpSocket) -> None:
    """Set those in AT_LAST, and the others that wait for connections."""
    wanted = {key: common.OPTIONS[key] for key in AT_LAST | tcp_ports.AFTER_CONNECTING}
    found = [option for option in tcp.options if (option.level, option.name) in wanted]
    common.set_options(sock, found, wanted, _fixed(tcp))


def _set_inherited(making: _Making) -> None:
    """Set the options that connections which were not accepted inherit from their listeners, as far as that is safe."""
    pending = [one.tcp for one in making.mine.values() if one.tcp.state == TcpSocket.PENDING]
    awaited = {addresses.address(tcp.remote).port for tcp in pending}
    from_there = {addresses.address(tcp.local).port for tcp in pending}  # these ports are to be bound once more
    for tcp, sock in making.own:
        if addresses.address(tcp.local).port in awaited - from_there:
            found = [option for option in tcp.options if (option.level, option.name) in tcp_ports.REUSES]
            common.set_options(sock, found, dict.fromkeys(tcp_ports.REUSES, 4))


def _set_deferring(making: _Making) -> None:
    """Let listeners defer connections (TCP_DEFER_ACCEPT) as before."""
    for tcp, sock in making.own:
        for option in tcp.options:
            if (option.level, option.name) == DEFER:
                common.set_option(sock, DEFER, option.value)


def _fixed(tcp: TcpSocket) -> frozenset[Key]:
    """Options that cannot be changed any more."""
    connected = tcp.state not in (TcpSocket.LISTEN, TcpSocket.CLOSED)
    return tcp_ports.FIXED | (BEFORE_MPTCP_CONNECTS if tcp.protocol == IPPROTO_MPTCP and connected else frozenset())


def _shut(sock: socket.socket, tcp: TcpSocket) -> None:
    if tcp.shut_write:
        sock.shutdown(socket.SHUT_WR)
    if tcp.shut_read:
        sock.shutdown(socket.SHUT_RD)


def _fill(sender: socket.socket, receiver: socket.socket, content: bytes) -> int:
    """Send what the other end had received. What does not fit there waits at the sender, as it would have.

    Returns:
        The bytes that fit at neither end.
    """

    def unsent() -> int:
        return common.queued(sender.fileno(), tcp_flow.SIOCOUTQNSD)

    if not content:
        return 0
    sender.setblocking(False)
    # An accepted end has its listener's buffer sizes, with which no buffer grows. It gets its own sizes at the end.
    buffers.let_go_of_size(receiver)
    if len(content) > receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF):
        tcp_flow.make_room(sender, receiver, len(content))
    left = memoryview(content)
    while left:
        try:
            left = left[sender.send(left) :]
        except BlockingIOError:
            waiting = unsent()
            buffers.enlarge(sender, socket.SO_SNDBUF)
            tcp_flow.bring(sender, receiver, unsent)
            if unsent() == waiting:
                break
    buffers.let_go_of_size(sender)
    buffers.let_go_of_size(receiver)
    return len(left)


def _fill_inside(sender: socket.socket, receiver: socket.socket, content: bytes) -> None:
    """The same within the tree, where nothing may be missing."""
    if _fill(sender, receiver, content):
        raise RestoreFailed(f"a TCP connection does not take the {len(content)} bytes that it had received")


def _patiently(act: Callable[[], T], where: str) -> T:
    """Try again while a closed connection still holds the port.

    Raises:
        RestoreFailed: it still does after PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            if time.monotonic() > deadline:
                raise RestoreFailed(
                    f"another program or an old connection holds {where}",
                    advice="connections that have ended hold a port for a minute: try again then",
                ) from error
        time.sleep(PAUSE)

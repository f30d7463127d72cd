"""Making TCP sockets again: listeners on their ports, connections within the tree, ends of what led outside.

A connection within the tree is made as it was: one end listens, the other connects from its old port. Where the
tree itself listens at that address its listener takes the connection, else a listener that is there for the
moment. Someone else who connects meanwhile is told by the address and turned away.

An end of a connection to the outside is connected to a socket of ours that sends what had been received, and
then resets or ends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, TcpSocket
from torpor.objects import port_holders, sockets, tcp_flow, tcp_keep
from torpor.objects.description import Opening, naming
from torpor.objects.sockets import Address, Key

IPPROTO_MPTCP = 262
SIOCOUTQNSD = 0x894B
"""An ioctl that tells the bytes that were written and not sent (include/uapi/linux/sockios.h)."""
IPV6 = 6
OPTIONS4: dict[Key, int] = {**sockets.GENERAL, **sockets.TCP}
OPTIONS6: dict[Key, int] = {**OPTIONS4, **sockets.TCP6}
REUSE: Key = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
REUSE_PORT: Key = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
PORT_RANGE: Key = (socket.IPPROTO_IP, 51)
"""IP_LOCAL_PORT_RANGE (ip(7))."""
BIND_NO_PORT: Key = (socket.IPPROTO_IP, 24)
"""IP_BIND_ADDRESS_NO_PORT (ip(7))."""
BEFORE_BIND: frozenset[Key] = frozenset({(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)})
"""Options that are fixed once a socket has an address."""
EARLY = BEFORE_BIND | {(socket.SOL_SOCKET, socket.SO_RCVBUF)}
"""Set later, a buffer's size does not bound the windows that are promised to the peer, and what comes is dropped."""
BEFORE_MPTCP_CONNECTS: frozenset[Key] = frozenset(
    {
        REUSE,
        REUSE_PORT,
        (socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
        BIND_NO_PORT,
        PORT_RANGE,
        (socket.IPPROTO_IP, 15),  # IP_FREEBIND
        (socket.IPPROTO_IP, socket.IP_TRANSPARENT),
    }
)
"""Options that are fixed once MPTCP is connected (net/mptcp/sockopt.c): they matter no more."""
RESET = struct.pack("ii", 1, 0)
"""struct linger: closing with it resets the connection (socket(7))."""

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds in which a port that an old connection still holds (TIME_WAIT on the loopback: 1 s) must become free."""
PAUSE = 0.02


# ----------------------------------------------------------------------------------------------------- check


def check(mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    """Say what of these cannot be made here."""
    sound = True
    for index, tcp in mine.items():
        for reason in _check_one(index, tcp, mine):
            sound = False
            yield reason
    if sound:
        yield from _check_ports(mine)


def _check_one(index: int, tcp: TcpSocket, mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    try:
        socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol).close()
    except OSError as error:
        what = "MPTCP" if tcp.protocol == IPPROTO_MPTCP else f"address family {tcp.family}"
        yield Reason("a TCP socket of the image", f"{what} is not available here: {error.strerror}")
        return
    if tcp.family not in (socket.AF_INET, socket.AF_INET6):
        yield Reason("the image", f"it has a TCP socket of family {tcp.family}")
    yield from sockets.check_options(tcp.options, "a TCP socket")
    try:
        sockets.address(tcp.local)
        if tcp.state == TcpSocket.INSIDE:
            peer = mine.get(tcp.peer)
            fits = (
                peer is not None
                and peer.state == TcpSocket.INSIDE
                and peer.peer == index != tcp.peer
                and sockets.address(peer.local) == sockets.address(tcp.remote)
            )
            if not fits:
                yield Reason("the image", f"the TCP socket {index} and its other end do not fit together")
        listeners = [other for other in mine.values() if other.state == TcpSocket.LISTEN]
        if tcp.state == TcpSocket.PENDING and not _listener_for(TcpSocket(local=tcp.remote), listeners):
            yield Reason("the image", f"the TCP socket {index} waits for nobody to accept it")
    except ValueError as error:
        yield Reason("the image", f"it has a TCP socket with {error}")
    if tcp.kept and not (tcp_keep.is_name(tcp.kept) and tcp.state == TcpSocket.OUTSIDE):
        yield Reason("the image", "it has a TCP connection that is kept under a name that cannot be")
    if tcp.state not in TcpSocket.State.values()[1:]:
        yield Reason("the image", "it has a TCP socket in a state that is not known")


def _check_ports(mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    """Bind every address once, as far as can be seen without listening."""
    listeners = [tcp for tcp in mine.values() if tcp.state == TcpSocket.LISTEN]
    tried: set[tuple[int, Address]] = set()
    for tcp in mine.values():
        where = sockets.address(tcp.local)
        if tcp.state == TcpSocket.INSIDE and _listener_for(tcp, listeners):
            continue
        bound = tcp.state in (TcpSocket.LISTEN, TcpSocket.INSIDE, TcpSocket.PENDING) or (
            tcp.state == TcpSocket.CLOSED and where.port
        )
        if not bound or (tcp.family, where) in tried:
            continue
        tried.add((tcp.family, where))
        with socket.socket(tcp.family, socket.SOCK_STREAM) as probe:
            try:
                # Not with SO_REUSEPORT: that would share the port with the program itself, if it still runs.
                _bind(probe, tcp, where, share=False)
            except OSError as error:
                holder = port_holders.find(where.port) if error.errno == errno.EADDRINUSE else None
                if holder is port_holders.OLD_CONNECTIONS and tcp.state in (TcpSocket.INSIDE, TcpSocket.PENDING):
                    continue  # these can be waited for: see _bind_by_range
                yield _cannot_bind(tcp, where, error, holder)


def _cannot_bind(tcp: TcpSocket, where: Address, error: OSError, holder: str | None) -> Reason:
    what = "listens at" if tcp.state == TcpSocket.LISTEN else "has a connection at"
    if holder == port_holders.OLD_CONNECTIONS:
        why, advice = "connections that have ended still hold the port", "try again in a minute"
    elif holder:
        why, advice = f"the port is taken by {holder}", "end it: it may be the program itself, which still runs"
    elif error.errno == errno.EADDRNOTAVAIL:
        why, advice = "this host does not have the address", "restore on the host that has it"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why, advice = "this user may not have the port", "see net.ipv4.ip_unprivileged_port_start"
    else:
        why, advice = str(error.strerror), ""
    return Reason(f"the program {what} {where}", why, advice)


# ------------------------------------------------------------------------------------------------------ open


@dataclass
class _Making:
    """What is made so far."""

    mine: dict[int, Description]
    opening: Opening
    listening: list[tuple[TcpSocket, socket.socket]] = field(default_factory=list)
    """The tree's own listeners."""
    moment: ExitStack = field(default_factory=ExitStack)
    """Sockets that are closed when all is made."""


def open_all(mine: dict[int, Description], opening: Opening) -> None:
    """Make all TCP sockets of an image, and leave nothing else."""
    making = _Making(mine, opening)
    with making.moment:
        for index, description in mine.items():
            if description.tcp.state in (TcpSocket.LISTEN, TcpSocket.CLOSED):
                with naming(description):
                    _open_alone(making, index, description.tcp)
        for index, description in mine.items():
            with naming(description):
                if description.tcp.state == TcpSocket.INSIDE and index < description.tcp.peer:
                    _open_pair(making, index, description.tcp.peer)
                elif description.tcp.kept and _open_kept(making, index, description.tcp):
                    continue
                elif description.tcp.state in (TcpSocket.OUTSIDE, TcpSocket.ENDED):
                    _open_end(making, index, description.tcp)
        for index, description in mine.items():  # nothing may be accepted from now on
            if description.tcp.state == TcpSocket.PENDING:
                with naming(description):
                    _open_pending(making, index, description.tcp)


def _open_alone(making: _Making, index: int, tcp: TcpSocket) -> None:
    sock = making.moment.enter_context(socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol))
    where = sockets.address(tcp.local)
    if where.port or tcp.state == TcpSocket.LISTEN:
        _bind(sock, tcp, where)
    _set_options(sock, tcp)  # those who connect as soon as it listens get them from it
    if tcp.state == TcpSocket.LISTEN:
        sock.setsockopt(*REUSE, 1)  # listen() looks at the port once more
        sock.listen(tcp.backlog)
        _set_options(sock, tcp)
        making.listening.append((tcp, sock))
    making.opening.place(index, sock.dup().detach())


def _open_pair(making: _Making, first: int, second: int) -> None:
    """Connect two ends again. The one at whose address the tree listens was the one that was connected to."""
    if _listener_for(making.mine[first].tcp, [tcp for tcp, _ in making.listening]):
        first, second = second, first
    client, server = making.mine[first].tcp, making.mine[second].tcp
    listener = _listener(making, server)
    with _connected(client, server) as near, _accepted(listener, client, server) as far:
        _fill(far, near, client.received)
        _fill(near, far, server.received)
        _set_options(near, client)
        _set_options(far, server)
        _shut(near, client)
        _shut(far, server)
        making.opening.place(first, near.detach())
        making.opening.place(second, far.detach())


def _open_pending(making: _Making, index: int, tcp: TcpSocket) -> None:
    """Connect an end again that its listener has not accepted yet."""
    with _connected(tcp, TcpSocket(local=tcp.remote, family=tcp.family)) as sock:
        _set_options(sock, tcp)
        _shut(sock, tcp)
        making.opening.place(index, sock.detach())


def _listener_for(tcp: TcpSocket, listeners: Iterable[TcpSocket]) -> TcpSocket | None:
    """The listener that an end of a connection was accepted from, if there is one."""
    here = sockets.address(tcp.local)
    for listener in listeners:
        there = sockets.address(listener.local)
        if there.port == here.port and (there.host == here.host or there.host.is_unspecified):
            return listener
    return None


def _listener(making: _Making, server: TcpSocket) -> socket.socket:
    """The tree's own listener at this end's address, or one for the moment."""
    own = _listener_for(server, [tcp for tcp, _ in making.listening])
    for tcp, sock in making.listening:
        if tcp is own:
            return sock
    sock = making.moment.enter_context(socket.socket(server.family, socket.SOCK_STREAM, server.protocol))
    where = sockets.address(server.local)
    _patiently(lambda: _bind(sock, server, where), f"{where}, where a connection of the tree ends")
    sock.listen()
    making.listening.append((TcpSocket(local=server.local), sock))
    return sock


def _connected(client: TcpSocket, server: TcpSocket) -> socket.socket:
    """The end that connects, from its old port."""
    here, there = sockets.address(client.local), sockets.address(server.local)

    def connect() -> socket.socket:
        try:
            return _connect(client, here, there, _bind_by_range)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, *sockets.NOT_HERE):
                raise
            return _connect(client, here, there, _bind)

    return _patiently(connect, f"{here}, from where a connection of the tree leads to {there}")


def _connect(client: TcpSocket, here: Address, there: Address, bind: Callable[..., None]) -> socket.socket:
    sock = socket.socket(client.family, socket.SOCK_STREAM, client.protocol)
    try:
        bind(sock, client, here)
        sock.settimeout(PATIENCE)
        sock.connect(sockets.for_python(there, client.family))
        if sockets.address(sockets.local_name(sock.fileno())) != here:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            raise OSError(errno.EADDRNOTAVAIL, "the port is not one that programs get by themselves here")
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_by_range(sock: socket.socket, tcp: TcpSocket, where: Address) -> None:
    """Let the kernel choose the port among one: as it chose it for the program.

    Only this way a port can be had again that an old connection still holds (TIME_WAIT): on the loopback after a
    second (net.ipv4.tcp_tw_reuse). Linux 6.3.
    """
    _set_before_bind(sock, tcp)
    sock.setsockopt(*PORT_RANGE, struct.pack("=HH", where.port, where.port))
    sock.setsockopt(*BIND_NO_PORT, 1)
    sock.bind(sockets.for_python(where._replace(port=0), tcp.family))


def _accepted(listener: socket.socket, client: TcpSocket, server: TcpSocket) -> socket.socket:
    """The end that was connected to. Anyone else in the queue is turned away."""
    wanted = sockets.address(client.local)
    blocking = os.get_blocking(listener.fileno())  # of the description, which the slot shares
    duplicate = listener.dup()
    deadline = time.monotonic() + PATIENCE
    try:
        while (left := deadline - time.monotonic()) > 0:
            duplicate.settimeout(left)
            sock, _ = duplicate.accept()
            if sockets.address(sockets.peer_name(sock.fileno())) == wanted:
                return sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
    except TimeoutError:
        pass
    finally:
        duplicate.close()
        os.set_blocking(listener.fileno(), blocking)
    where = sockets.address(server.local)
    raise RestoreFailed(f"the connection from {wanted} to {where} in the tree did not come about in {PATIENCE:g} s")


def _open_kept(making: _Making, index: int, tcp: TcpSocket) -> bool:
    """An end whose connection goes on, if it may: it does so when the tree is let go."""
    opening, where = making.opening, sockets.address(tcp.remote)
    state = tcp_keep.find(tcp)
    if state is None:
        opening.warnings.append(
            f"the TCP connection to {where} was kept for one restore on its host, by root: it is reset"
        )
        return False
    try:
        sock = tcp_keep.make(tcp, state)
        _set_options(sock, tcp)
    except (OSError, RestoreFailed) as error:
        why = error.strerror if isinstance(error, OSError) else error
        opening.warnings.append(f"the TCP connection to {where} is reset, as it cannot go on: {why}")
        return False
    opening.place(index, sock.detach())

    def let_go() -> None:
        with opening.socket(index) as kept:
            tcp_keep.let_go(kept, tcp, state)

    opening.at_last.append(let_go)
    return True


def _open_end(making: _Making, index: int, tcp: TcpSocket) -> None:
    """An end whose peer is gone: reset by it, or ended."""
    if sockets.address(tcp.local).host.version == IPV6:
        host = "::1"
    else:  # IPv6 may be off: a socket of it that spoke IPv4 goes on to
        host = "::ffff:127.0.0.1" if tcp.family == socket.AF_INET6 else "127.0.0.1"
    with (
        socket.socket(tcp.family, socket.SOCK_STREAM) as listener,
        socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol) as near,
    ):
        listener.bind((host, 0))
        listener.listen(1)
        _set_before_bind(near, tcp)
        near.settimeout(PATIENCE)
        near.connect(listener.getsockname())
        client = TcpSocket(local=sockets.local_name(near.fileno()))
        with _accepted(listener, client, TcpSocket(local=sockets.local_name(listener.fileno()))) as far:
            _fill(far, near, tcp.received)
            _set_options(near, tcp)
            if tcp.state == TcpSocket.ENDED or tcp.peer_done:
                # What stays of our end in the kernel is to be gone soon (tcp(7)).
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
                far.shutdown(socket.SHUT_WR)
                if tcp.state == TcpSocket.ENDED or tcp.shut_write:
                    near.shutdown(socket.SHUT_WR)
            else:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        making.opening.place(index, near.detach())


def _bind(sock: socket.socket, tcp: TcpSocket, where: Address, *, share: bool = True) -> None:
    """Bind, past what old connections left on the port; that option becomes what it was in `_set_options`."""
    _set_before_bind(sock, tcp)
    sock.setsockopt(*REUSE, 1)
    for option in tcp.options:
        if share and (option.level, option.name) == REUSE_PORT:
            sockets.set_option(sock, REUSE_PORT, option.value)
    sock.bind(sockets.for_python(where, tcp.family))


def _set_before_bind(sock: socket.socket, tcp: TcpSocket) -> None:
    for option in tcp.options:
        if (option.level, option.name) in EARLY:
            sockets.set_option(sock, (option.level, option.name), option.value)


def _set_options(sock: socket.socket, tcp: TcpSocket) -> None:
    fixed = BEFORE_BIND
    if tcp.protocol == IPPROTO_MPTCP and tcp.state not in (TcpSocket.LISTEN, TcpSocket.CLOSED):
        fixed |= BEFORE_MPTCP_CONNECTS
    sockets.set_options(sock, tcp.options, OPTIONS6 if tcp.family == socket.AF_INET6 else OPTIONS4, fixed)


def _shut(sock: socket.socket, tcp: TcpSocket) -> None:
    if tcp.shut_write:
        sock.shutdown(socket.SHUT_WR)
    if tcp.shut_read:
        sock.shutdown(socket.SHUT_RD)


def _fill(sender: socket.socket, receiver: socket.socket, content: bytes) -> None:
    """Send what the other end had received. What has no room there waits at the sender, as it would have."""

    def unsent() -> int:
        return sockets.queued(sender.fileno(), SIOCOUTQNSD)

    sender.setblocking(False)
    left = memoryview(content)
    while left:
        try:
            left = left[sender.send(left) :]
        except BlockingIOError:
            waiting = unsent()
            sockets.enlarge(sender, socket.SO_SNDBUF)
            tcp_flow.bring(sender, receiver, unsent)
            if unsent() == waiting:
                raise RestoreFailed(
                    f"a TCP connection does not take the {len(content)} bytes that it had received"
                ) from None
    if content:
        sockets.let_go_of_size(sender)
        sockets.let_go_of_size(receiver)


def _patiently(act: Callable[[], T], where: str) -> T:
    """Try again while an old connection still holds the port.

    Raises:
        RestoreFailed: it still does after PATIENCE.
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

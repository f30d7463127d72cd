"""TCP ports: whether those of an image are available here, and binding them again.

Listeners, and sockets that the program had bound, bind their ports again. A connecting end got its port from the
kernel, which may give one port to any number of connections with different peers: the port is available if the
connection can be made, though bind(2) may refuse it. So the kernel is asked to choose from a range of one port
(IP_LOCAL_PORT_RANGE, Linux 6.3). It does so only within net.ipv4.ip_local_port_range; for other ports bind() must do.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing

from torpor.errors import Reason
from torpor.image.image_pb2 import TcpSocket
from torpor.objects.sockets import addresses, common, port_holders
from torpor.objects.sockets.addresses import Address
from torpor.objects.sockets.common import Key

IPPROTO_MPTCP = 262
REUSE: Key = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
REUSE_PORT: Key = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
REUSES = frozenset({REUSE, REUSE_PORT})
PORT_RANGE: Key = (socket.IPPROTO_IP, 51)
"""IP_LOCAL_PORT_RANGE (ip(7))."""
BIND_NO_PORT: Key = (socket.IPPROTO_IP, 24)
"""IP_BIND_ADDRESS_NO_PORT (ip(7))."""
FREEBIND: Key = (socket.IPPROTO_IP, 15)
TRANSPARENT: Key = (socket.IPPROTO_IP, socket.IP_TRANSPARENT)
DEVICE: Key = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE)
V6ONLY: Key = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
FIXED: frozenset[Key] = frozenset({V6ONLY})
"""Options that cannot be changed once a socket has an address."""
FAST_OPEN: Key = (socket.IPPROTO_TCP, 23)
NO_COOKIE: Key = (socket.IPPROTO_TCP, 34)
"""TCP_FASTOPEN_NO_COOKIE (include/uapi/linux/tcp.h)."""
EARLY = FIXED | {FREEBIND, TRANSPARENT, DEVICE, FAST_OPEN, NO_COOKIE, (socket.SOL_SOCKET, socket.SO_RCVBUF)}
"""Options that are set first: they determine which addresses a socket may have, or are refused once it is connected
(net/ipv4/tcp.c, do_tcp_setsockopt). If a receive buffer's size is set later, it does not limit the windows that were
announced to the peer, and data is dropped.
"""
AFTER_CONNECTING: frozenset[Key] = frozenset({DEVICE})
"""Those of EARLY that are set when the connections within the tree are made: these lead through the loopback, and were
made before the program chose another device.
"""
RESET = struct.pack("ii", 1, 0)
"""struct linger: with it, close() resets the connection (socket(7))."""
BOUND = (TcpSocket.LISTEN, TcpSocket.CLOSED)
CONNECTING = (TcpSocket.INSIDE, TcpSocket.PENDING)


def listener_for(tcp: TcpSocket, listeners: Iterable[TcpSocket]) -> TcpSocket | None:
    """The listener that has accepted an end of a connection, if there is one."""
    here = addresses.address(tcp.local)
    for listener in listeners:
        there = addresses.address(listener.local)
        if there.port == here.port and (there.host == here.host or there.host.is_unspecified):
            return listener
    return None


def place(tcp: TcpSocket) -> tuple[object, ...]:
    """The address of an end that was accepted, and the options that its listener must have had to be there."""
    early = sorted((one.level, one.name, one.value) for one in tcp.options if (one.level, one.name) in EARLY)
    return tcp.family, tcp.protocol, tcp.local, has_option(tcp, REUSE_PORT), *early


def shared(mine: Iterable[TcpSocket]) -> set[int]:
    """The ports to which several sockets of an image are bound: SO_REUSEPORT may be off by now."""
    count = Counter(addresses.address(tcp.local).port for tcp in mine if tcp.state in BOUND and not tcp.released)
    return {port for port, sockets_at in count.items() if port and sockets_at > 1}


def validate(mine: dict[int, TcpSocket]) -> Iterator[Reason]:
    """Try every address once, as far as possible without listening on it."""
    listeners = [tcp for tcp in mine.values() if tcp.state == TcpSocket.LISTEN]
    tried: set[tuple[int, Address]] = set()
    for tcp in mine.values():
        where = addresses.address(tcp.local)
        if tcp.state == TcpSocket.INSIDE and not tcp.connected and listener_for(tcp, listeners):
            continue
        bound = tcp.state in (TcpSocket.LISTEN, *CONNECTING) or (tcp.state == TcpSocket.CLOSED and where.port)
        if not bound or tcp.released or (tcp.family, where) in tried:
            continue
        tried.add((tcp.family, where))
        with socket.socket(tcp.family, socket.SOCK_STREAM) as probe:
            try:
                # Not with SO_REUSEPORT: the probe could share the port with the program itself, if it still runs.
                bind(probe, tcp, where, share=False)
            except OSError as error:
                holder = port_holders.find(where.port) if error.errno == errno.EADDRINUSE else None
                connects = tcp.state == TcpSocket.PENDING or (
                    tcp.state == TcpSocket.INSIDE and (tcp.connected or not mine[tcp.peer].connected)
                )
                # For closed connections connect() waits.
                if holder and connects and (holder.seconds is not None or _can_connect(tcp, where)):
                    continue
                yield _cannot_bind(tcp, where, error, holder)


def _can_connect(tcp: TcpSocket, here: Address) -> bool:
    """Whether a connection can be made from a port that bind() refuses: try it, to a port of ours."""
    there = addresses.address(tcp.remote)
    family = socket.AF_INET if there.host.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind(addresses.for_python(there._replace(port=0), family))
            listener.listen(1)
            port = int(listener.getsockname()[1])
            with closing(connect(tcp, here, there._replace(port=port))) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        return False
    return True


def _cannot_bind(tcp: TcpSocket, where: Address, error: OSError, holder: port_holders.PortHolder | None) -> Reason:
    what = "listens at" if tcp.state == TcpSocket.LISTEN else "has a connection at"
    if holder and holder.seconds is not None:
        why, advice = "connections that have ended still hold the port", f"try again in {holder.seconds} s"
        return Reason(f"the program {what} {where}", why, advice, seconds=holder.seconds + 1)
    if holder:
        why, advice = f"the port is taken by {holder.words}", "end it: it may be the program itself, which still runs"
    elif error.errno == errno.EADDRNOTAVAIL:
        why, advice = "this host does not have the address", "restore on the host that has it"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why, advice = "this user may not have the port", "see net.ipv4.ip_unprivileged_port_start"
    else:
        why, advice = str(error.strerror), ""
    return Reason(f"the program {what} {where}", why, advice)


def connect(tcp: TcpSocket, here: Address, there: Address, patience: float = 2.0) -> socket.socket:
    """Connect from a port that the kernel chooses: see above.

    This is the only way to get a port that a closed connection still holds (TIME_WAIT): on the loopback after a second
    (net.ipv4.tcp_tw_reuse). The caller must restore the options that this sets.

    Args:
        tcp: the socket to connect.
        here: its address.
        there: its peer's address.
        patience: seconds until the peer must accept it.

    Raises:
        OSError: EADDRNOTAVAIL: the port is in use, or the kernel does not choose it.
    """
    sock = socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol)
    try:
        choose(sock, tcp, here.port)
        if tcp.family == socket.AF_INET or has_option(tcp, V6ONLY):  # bind() itself sets that option (__inet6_bind())
            sock.bind(addresses.for_python(here._replace(port=0), tcp.family))
        sock.settimeout(patience)
        sock.connect(addresses.for_python(there, tcp.family))
        if addresses.address(addresses.local_name(sock.fileno())) != here:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            raise OSError(errno.EADDRNOTAVAIL, "the port is not one that programs get by themselves here")
    except BaseException:
        sock.close()
        raise
    return sock


def bind(
    sock: socket.socket, tcp: TcpSocket, where: Address, *, share: bool, but: frozenset[Key] = frozenset()
) -> None:
    """Bind to a port, even if closed connections still hold it. The caller must restore the options that this sets.

    Args:
        sock: a new socket.
        tcp: what it was.
        where: its address.
        share: whether others have the port, too.
        but: options that are set later.

    Raises:
        OSError: the kernel refuses.
    """
    set_early(sock, tcp, but)
    sock.setsockopt(*REUSE, 1)
    if share:
        sock.setsockopt(*REUSE_PORT, 1)
    sock.bind(addresses.for_python(where, tcp.family))


def choose(sock: socket.socket, tcp: TcpSocket, port: int) -> None:
    """Have the kernel choose this port for a new socket when it connects; the caller must restore the options."""
    set_early(sock, tcp)
    sock.setsockopt(*REUSE, 1)
    sock.setsockopt(*PORT_RANGE, struct.pack("=HH", port, port))
    sock.setsockopt(*BIND_NO_PORT, 1)


def set_early(sock: socket.socket, tcp: TcpSocket, but: frozenset[Key] = frozenset()) -> None:
    """Set the options that must be set before a socket has an address, except those in `but`."""
    if tcp.state in CONNECTING and tcp.protocol != IPPROTO_MPTCP:  # connected, MPTCP takes none any more
        but |= AFTER_CONNECTING
    for option in tcp.options:
        if (option.level, option.name) in EARLY - but:
            common.set_option(sock, (option.level, option.name), option.value)


def has_option(tcp: TcpSocket, key: Key) -> bool:
    """Whether an option of the image is on."""
    return any((option.level, option.name) == key and any(option.value) for option in tcp.options)

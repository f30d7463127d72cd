"""TCP sockets whose address still names a port that the kernel has taken back: others may have it, before and after."""

import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ready import expect, judge, ready_and_wait, same

FAMILIES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
LIBC = ctypes.CDLL(None, use_errno=True)


def refused(family: int) -> socket.socket:
    """One that tried to connect to a port where nobody listens."""
    with socket.socket(family) as nobody:
        nobody.bind((FAMILIES[family], 0))
        sock = socket.socket(family)
        with suppress(ConnectionRefusedError):
            sock.connect(nobody.getsockname())
            raise AssertionError("somebody listens")
    return sock


def shut(family: int) -> socket.socket:
    """One that listened at a port of the kernel's choice."""
    sock = socket.create_server((FAMILIES[family], 0), family=family)
    sock.shutdown(socket.SHUT_RDWR)
    return sock


def shut_with_clients() -> tuple[socket.socket, socket.socket, socket.socket]:
    """One that has released its port, at which a connection is that it had accepted.

    Its address comes back only if the port is free: not when such a connection has ended a moment ago.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    listener.shutdown(socket.SHUT_RDWR)
    return listener, client, server


def dissolved(family: int) -> socket.socket:
    """One that was connected until the program took its peer away (connect(2), AF_UNSPEC)."""
    with socket.create_server((FAMILIES[family], 0), family=family) as listener:
        sock = socket.create_connection(listener.getsockname()[:2])
        none = struct.pack("=H26x", socket.AF_UNSPEC)
        expect(not LIBC.connect(sock.fileno(), none, len(none)), "connect() to AF_UNSPEC")
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return sock


def holds(sock: socket.socket) -> bool:
    """Whether nobody else gets its port."""
    with socket.socket(sock.family) as probe:
        try:
            probe.bind(sock.getsockname())
        except OSError as error:
            same(error.errno, errno.EADDRINUSE, "the error of bind()")
            return True
    return False


def alone(make: Callable[[int], socket.socket], family: int) -> socket.socket:
    """One whose port nobody else has, such as a connection that has ended a moment ago (TIME_WAIT)."""
    while holds(sock := make(family)):
        sock.close()
    return sock


def main() -> None:
    mine = [alone(make, family) for family in FAMILIES for make in (refused, shut, dissolved)]
    names = [sock.getsockname() for sock in mine]
    expect(all(name[1] for name in names), f"they have no port: {names}")
    expect(not any(map(holds, mine)), "a port was not released")
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    taken = shut(socket.AF_INET)
    holder = socket.create_server(taken.getsockname())
    listener, client, server = shut_with_clients()
    ports = [sock.getsockname() for sock in (bound, taken, holder)]

    ready_and_wait()
    same([sock.getsockname() for sock in mine], names, "their addresses")
    expect(not any(map(holds, mine)), "a port is held")
    same([sock.getsockname() for sock in (bound, taken, holder)], ports, "the other addresses")
    expect(holds(bound), "a bound socket has lost its port")
    for sock in mine:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # only while it has no port
    for sock in mine[::3] + mine[2::3]:
        there = holder if sock.family == socket.AF_INET else socket.create_server(("::1", 0), family=socket.AF_INET6)
        sock.connect(there.getsockname())
        sock.sendall(b"again")
        same(there.accept()[0].recv(10), b"again", "what came through a new connection")
    client.sendall(b"still")
    same(server.recv(10), b"still", "what came through the old connection")
    listener.bind(("127.0.0.1", 0))


judge(main)

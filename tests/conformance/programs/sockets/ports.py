"""Ports that several sockets have, or that a listener once had, or whose listener would not take the connection again:
all come back, and the options as they were."""

import os
import select
import socket
from contextlib import suppress
from pathlib import Path

from ready import expect, judge, ready_and_wait, same

ADDRESS = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
PORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
DATAGRAMS = socket.SOCK_DGRAM
MINTTL = (socket.IPPROTO_IP, 21)
MINHOPCOUNT = (socket.IPPROTO_IPV6, 73)
DEFER = (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
Pair = tuple[socket.socket, socket.socket]


def bound(port: int, option: tuple[int, int], kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(*option, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def two(option: tuple[int, int], kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    first = bound(0, option, kind)
    return first, bound(first.getsockname()[1], option, kind)


def below_the_range() -> socket.socket:
    """A socket at a port that the kernel gives to nobody by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(lowest - 1 - os.getpid() % 1000, 1024, -1):
        with suppress(OSError):
            return bound(port, ADDRESS)
    raise AssertionError("no port below the range is free")


def connected(listener: socket.socket, host: str = "") -> Pair:
    there = listener.getsockname()
    client = socket.create_connection((host, there[1]) if host else there[:2])
    client.sendall(b".")  # with TCP_DEFER_ACCEPT it is not accepted before
    server = listener.accept()[0]
    server.recv(1)
    return client, server


def through_a_closed_one() -> Pair:
    with below_the_range() as listener:
        listener.listen()
        return connected(listener)


def to_itself() -> Pair:
    sock = below_the_range()
    sock.connect(sock.getsockname())
    return sock, sock


def shared() -> tuple[list[socket.socket], list[Pair]]:
    """Connections to listeners at one port, of which the kernel chooses one for each."""
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    listeners = [first, socket.create_server(first.getsockname(), reuse_port=True)]
    pairs = []
    for _ in range(6):
        client = socket.create_connection(listeners[0].getsockname())
        pairs.append((client, select.select(listeners, [], [])[0][0].accept()[0]))
    first.setsockopt(*PORT, 0)
    return listeners, pairs


def unwilling() -> tuple[list[socket.socket], list[Pair]]:
    """Listeners that would not take their connections again, or not at once, or that listen no more."""
    everywhere = socket.create_server(("", 0), reuse_port=True)
    here = socket.create_server(("127.0.0.1", everywhere.getsockname()[1]), reuse_port=True)
    pairs = [connected(here, "127.0.0.1"), connected(everywhere, "127.0.0.2")]
    careful, deferring, ended, rebound = (socket.create_server(("127.0.0.1", 0)) for _ in range(4))
    if socket.has_dualstack_ipv6():
        six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    else:
        six = socket.create_server(("127.0.0.1", 0))
    deferring.setsockopt(*DEFER, 30)
    pairs += map(connected, (careful, deferring, ended, rebound, six))
    careful.setsockopt(*MINTTL, 255)
    six.setsockopt(*(MINHOPCOUNT if six.family == socket.AF_INET6 else MINTTL), 255)
    ended.shutdown(socket.SHUT_RDWR)
    ended.setsockopt(*ADDRESS, 0)
    port = rebound.getsockname()[1]
    rebound.close()
    rebound = bound(port, ADDRESS)
    rebound.setsockopt(*ADDRESS, 0)
    return [everywhere, here, careful, six, deferring, ended, rebound], pairs


def unlike() -> Pair:
    """Two that could share a port, and have no option in common by now."""
    first, second = (socket.socket(socket.AF_INET, DATAGRAMS) for _ in range(2))
    for sock in (first, second):
        for option in (ADDRESS, PORT):
            sock.setsockopt(*option, 1)
        sock.bind(first.getsockname() if sock is second else ("127.0.0.1", 0))
    first.setsockopt(*ADDRESS, 0)
    second.setsockopt(*PORT, 0)
    return first, second


def numbers(sock: socket.socket) -> list[object]:
    options = [ADDRESS, PORT]
    if sock.type == socket.SOCK_STREAM:
        options += [MINTTL, DEFER, *([MINHOPCOUNT] if sock.family == socket.AF_INET6 else [])]
    return [sock.getsockname(), *(sock.getsockopt(*option) for option in options)]


def main() -> None:
    groups = [two(PORT), two(PORT, DATAGRAMS), two(ADDRESS, DATAGRAMS), two(ADDRESS), two(PORT)]
    for sock in (*groups[0], groups[3][1], *groups[4]):
        sock.listen(3)
    for sock in (one for group in groups[:3] for one in group):
        for option in (ADDRESS, PORT):
            sock.setsockopt(*option, 0)
    alone = bound(0, ADDRESS)
    alone.setsockopt(*ADDRESS, 0)
    (unwilling_ones, pairs), (sharing, more) = unwilling(), shared()
    pairs += [*more, through_a_closed_one(), through_a_closed_one()[::-1], to_itself()]
    plain = socket.socket()
    plain.bind(("127.0.0.1", 0))
    plain.listen()
    expected = socket.create_connection(plain.getsockname())
    generous, strict = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    strict.setsockopt(*DEFER, 600)
    waiting, silent = (socket.create_connection(one.getsockname()) for one in (generous, strict))
    generous.setsockopt(*DEFER, 600)
    early = [socket.create_connection(groups[3][1].getsockname()) for _ in range(4)]
    groups[3][1].listen(0)  # fewer than wait already
    everything = [*(one for group in (*groups, *pairs) for one in group), alone, *unwilling_ones, *sharing]
    everything += [generous, strict, *unlike()]
    ended = everything.pop(everything.index(unwilling_ones[5]))
    before = [*map(numbers, everything)]
    was = ended.getsockname()
    ready_and_wait()

    same([*map(numbers, everything)], before, "ports")
    # It has released its port, and does not get it again if its connection has ended a moment ago (released_ports.py).
    expect(ended.getsockname() in (was, ("0.0.0.0", 0)), f"one that listened: {was} became {ended.getsockname()}")
    for near, far in pairs:
        near.sendall(b"to and")
        same(far.recv(10), b"to and", f"a connection to {far.getsockname()}")
        far.sendall(b"fro")
        same(near.recv(10), b"fro", "its other way")
    for group in (groups[0], groups[4]):
        for listener in group:
            listener.setblocking(False)
        with socket.create_connection(group[0].getsockname(), timeout=100):
            taken = 0
            while not taken:
                for listener in group:
                    with suppress(BlockingIOError):
                        listener.accept()[0].close()
                        taken += 1
    accepted = plain.accept()[0]
    same([accepted.getpeername(), *numbers(accepted)[1:3]], [expected.getsockname(), 0, 0], "who inherits no option")
    generous.settimeout(100)
    same(generous.accept()[1], waiting.getsockname(), "who came before the listener deferred")
    strict.setblocking(False)
    with suppress(BlockingIOError):
        strict.accept()
        expect(False, "who has sent nothing is accepted by a listener that defers")
    silent.sendall(b"now")
    strict.settimeout(100)
    same(strict.accept()[0].recv(10), b"now", "who has sent something by now")
    all_accepted = [groups[3][1].accept()[0] for _ in early]
    same({one.getpeername() for one in all_accepted}, {one.getsockname() for one in early}, "who waited to be accepted")
    for group in groups[1:3]:
        with socket.socket(socket.AF_INET, DATAGRAMS) as sender:
            sender.sendto(b"to one of them", group[0].getsockname())
        for one in group:
            one.setblocking(False)
        got = []
        while not got:
            for one in group:
                with suppress(BlockingIOError):
                    got.append(one.recv(100))
        same(got, [b"to one of them"], "a datagram")
    alone.listen()
    expect(socket.create_connection(alone.getsockname()), "one that was bound only")


judge(main)

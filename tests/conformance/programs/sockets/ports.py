"""Ports that several sockets have, or that a closed listener once had: all come back, and the options as they were."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from ready import expect, judge, ready_and_wait, same

ADDRESS = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
PORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
DATAGRAMS = socket.SOCK_DGRAM


def bound(port: int, option: tuple[int, int], kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(*option, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def two(option: tuple[int, int], kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    first = bound(0, option, kind)
    return first, bound(first.getsockname()[1], option, kind)


def below_the_range() -> tuple[socket.socket, socket.socket]:
    """A connection whose listener is closed, and whose port the kernel gives to nobody by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(lowest - 1 - os.getpid() % 1000, 1024, -1):
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
        with listener:
            client = socket.create_connection(listener.getsockname())
            return client, listener.accept()[0]
    raise AssertionError("no port below the range is free")


def main() -> None:
    groups = [two(PORT), two(PORT, DATAGRAMS), two(ADDRESS, DATAGRAMS), two(ADDRESS), two(PORT)]
    for sock in (*groups[0], groups[3][1], *groups[4]):
        sock.listen(3)
    for sock in (one for group in groups[:3] for one in group):
        for option in (ADDRESS, PORT):
            sock.setsockopt(*option, 0)
    alone = bound(0, ADDRESS)
    alone.setsockopt(*ADDRESS, 0)
    below, reversed_ = below_the_range(), below_the_range()[::-1]
    early = [socket.create_connection(groups[3][1].getsockname()) for _ in range(4)]
    groups[3][1].listen(0)  # fewer than wait already
    everything = [*(one for group in groups for one in group), alone, *below, *reversed_]
    before = [(one.getsockname(), one.getsockopt(*ADDRESS), one.getsockopt(*PORT)) for one in everything]
    ready_and_wait()

    same([(one.getsockname(), one.getsockopt(*ADDRESS), one.getsockopt(*PORT)) for one in everything], before, "ports")
    for near, far in (below, reversed_):
        near.sendall(b"to and")
        same(far.recv(10), b"to and", "a connection whose listener is closed")
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
    accepted = [groups[3][1].accept()[0] for _ in early]
    same({one.getpeername() for one in accepted}, {one.getsockname() for one in early}, "who waited to be accepted")
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

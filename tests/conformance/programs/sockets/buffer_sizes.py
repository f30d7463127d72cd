"""Sizes of sockets' buffers that the program chose, where it may also above what users may, and what is in them."""

import socket
from contextlib import suppress

from ready import judge, ready_and_wait, same

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
LARGE = 64 << 20
MUCH = 300_000


def sized(sock: socket.socket, size: int) -> socket.socket:
    for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, name, size)
    return sock


def forced(sock: socket.socket) -> socket.socket:
    with suppress(PermissionError):
        for name in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            sock.setsockopt(socket.SOL_SOCKET, name, LARGE)
    return sock


def connected(size: int) -> tuple[socket.socket, socket.socket, socket.socket]:
    listener = sized(socket.socket(), size)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near = socket.create_connection(listener.getsockname())
    near.setblocking(False)
    return listener, near, listener.accept()[0]


def filled(near: socket.socket) -> int:
    sent = 0
    with suppress(BlockingIOError):
        while sent < MUCH:
            sent += near.send(bytes(MUCH - sent))
    return sent


def main() -> None:
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    unix = [sized(one, 40_000) for kind in kinds for one in socket.socketpair(socket.AF_UNIX, kind)]
    inet = [sized(socket.socket(socket.AF_INET, kind), 40_000) for kind in kinds]
    large = [forced(socket.socket(family, kind)) for family in (socket.AF_INET, socket.AF_INET6) for kind in kinds]
    large += [forced(one) for one in socket.socketpair(socket.AF_UNIX)]
    connections = [connected(size) for size in (4096, 65536)]
    sent = [filled(near) for _, near, _ in connections]
    every = [*unix, *inet, *large, *(one for three in connections for one in (three[0], three[2]))]
    sizes = [[one.getsockopt(socket.SOL_SOCKET, name) for name in (7, 8)] for one in every]

    ready_and_wait()
    for one, before in zip(every, sizes, strict=True):
        same([one.getsockopt(socket.SOL_SOCKET, name) for name in (7, 8)], before, f"the sizes of {one}")
    for (_, near, far), size in zip(connections, sent, strict=True):
        near.close()
        same(sum(iter(lambda far=far: len(far.recv(MUCH)), 0)), size, "the bytes of a connection")


judge(main)

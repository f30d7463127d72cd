"""Changing the TCP ports of a tree: for a second tree from one image, beside the first.

The image is changed before it is checked. A listener on a remapped port listens on the new one, connections within the
tree follow, and their ends that once got a port from the kernel get a free one. The programs themselves must change
what they remember of their ports (in variables, in files).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

from torpor.errors import Reason, RestoreRefused
from torpor.image.image_pb2 import TcpSocket, Tree
from torpor.objects.sockets import addresses

CONNECTED = (TcpSocket.INSIDE, TcpSocket.PENDING)
"""States of an end whose other end is in the tree."""
PORTS = range(1, 1 << 16)


def move(image: Tree, ports: Mapping[int, int]) -> None:
    """Change the ports in an image.

    Args:
        image: not trusted.
        ports: maps the old port of each listener to its new one.

    Raises:
        ValueError: a new port is invalid, or is used twice.
        RestoreRefused: nothing in the image listens on one of the old ports.
    """
    if len(set(ports.values())) < len(ports) or not all(port in PORTS for port in ports.values()):
        raise ValueError(f"{dict(ports)} does not give each port another one")
    found, there = list(_sockets(image)), listening(image)
    if missing := ports.keys() - there:
        why = "nothing in the image listens there, so that it cannot be moved"
        raise RestoreRefused("ports cannot be changed", [Reason(f"port {port}", why) for port in sorted(missing)])
    moved = dict(ports)
    for tcp in found:
        if tcp.state in CONNECTED and (port := _port(tcp.local)) not in there and port not in moved:
            moved[port] = _free(tcp, {*there, *moved.values()})
    for tcp in found:
        if tcp.state in (TcpSocket.LISTEN, TcpSocket.CLOSED, *CONNECTED):
            tcp.local = _with_port(tcp.local, moved)
        if tcp.state in CONNECTED:
            tcp.remote = _with_port(tcp.remote, moved)


def listening(image: Tree) -> set[int]:
    """The ports on which an image's processes listen."""
    return {_port(tcp.local) for tcp in _sockets(image) if tcp.state == TcpSocket.LISTEN}


def _sockets(image: Tree) -> Iterator[TcpSocket]:
    return (description.tcp for description in image.descriptions if description.WhichOneof("kind") == "tcp")


def _port(name: bytes) -> int:
    return int.from_bytes(name[2:4], "big")  # struct sockaddr_in and sockaddr_in6 alike


def _with_port(name: bytes, moved: Mapping[int, int]) -> bytes:
    port = _port(name)
    return name[:2] + moved.get(port, port).to_bytes(2, "big") + name[4:]


def _free(tcp: TcpSocket, taken: set[int]) -> int:
    """A port that is unused at the moment and not in `taken`."""
    try:
        host, _, *rest = addresses.for_python(addresses.address(tcp.local), tcp.family)
        while True:
            with socket.socket(tcp.family, socket.SOCK_STREAM) as probe:
                probe.bind((host, 0, *rest))
                port = int(probe.getsockname()[1])
            if port not in taken:
                return port
    except (OSError, ValueError):  # not an address of this host, or invalid: the check of the image refuses it
        return _port(tcp.local)

"""Other TCP ports for a second tree from one image."""

from __future__ import annotations

import socket

import pytest

from torpor.errors import RestoreRefused
from torpor.image.image_pb2 import TcpSocket, Tree
from torpor.objects.sockets import addresses, port_remapping


def name(port: int, family: int = socket.AF_INET) -> bytes:
    """A struct sockaddr of the loopback."""
    at = port.to_bytes(2, "big")
    if family == socket.AF_INET:
        return family.to_bytes(2, "little") + at + bytes([127, 0, 0, 1]) + bytes(8)
    return family.to_bytes(2, "little") + at + bytes(4) + bytes(15) + b"\1" + bytes(4)


def tree(*found: TcpSocket) -> Tree:
    image = Tree()
    for tcp in found:
        image.descriptions.add().tcp.CopyFrom(tcp)
    return image


def ports(image: Tree) -> list[tuple[int, int]]:
    """Local and remote ports; 0 for none."""
    numbers = []
    for description in image.descriptions:
        tcp = description.tcp
        local, remote = (addresses.address(end).port if end else 0 for end in (tcp.local, tcp.remote))
        numbers.append((local, remote))
    return numbers


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_connections_follow_their_listener(family: int) -> None:
    listener = TcpSocket(family=family, state=TcpSocket.LISTEN, local=name(5000, family))
    other = TcpSocket(family=family, state=TcpSocket.LISTEN, local=name(5001, family))
    far = TcpSocket(family=family, state=TcpSocket.INSIDE, local=name(5000, family), remote=name(40000, family))
    near = TcpSocket(family=family, state=TcpSocket.INSIDE, local=name(40000, family), remote=name(5000, family))
    outside = TcpSocket(family=family, state=TcpSocket.OUTSIDE, local=name(5000, family), remote=name(443, family))
    image = tree(listener, other, far, near, outside)
    port_remapping.move(image, {5000: 6000})
    client = ports(image)[3][0]
    assert client not in (40000, 5000, 5001, 6000)
    assert ports(image) == [(6000, 0), (5001, 0), (6000, client), (client, 6000), (5000, 443)]
    assert port_remapping.listening(image) == {6000, 5001}
    assert image.descriptions[0].tcp.local == name(6000, family)


def test_what_is_not_there_cannot_move() -> None:
    image = tree(TcpSocket(family=socket.AF_INET, state=TcpSocket.LISTEN, local=name(5000)))
    before = Tree.FromString(image.SerializeToString())
    with pytest.raises(RestoreRefused, match=r"port 5002: nothing in the image listens there"):
        port_remapping.move(image, {5000: 6000, 5002: 6001})
    for ports in ({5000: 0}, {5000: 1 << 16}, {5000: 6000, 5001: 6000}):
        with pytest.raises(ValueError, match="another"):
            port_remapping.move(image, ports)
    assert image == before


def test_a_name_that_is_no_address_is_left_to_the_check() -> None:
    bad = TcpSocket(family=socket.AF_INET, state=TcpSocket.INSIDE, local=b"x", remote=b"")
    image = tree(TcpSocket(family=socket.AF_INET, state=TcpSocket.LISTEN, local=name(5000)), bad)
    port_remapping.move(image, {5000: 6000})

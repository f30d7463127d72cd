"""Netlink sockets that are idle: their groups and ports come back; one that has a peer or news does not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors

ROUTE, LINK_GROUP, IPV4_GROUP = 0, 1, 5
MAKE = "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n"


def test_groups_and_the_port_come_back(acting: Acting) -> None:
    def body(_: Path) -> None:
        bind = f"s.bind((0, {1 << LINK_GROUP - 1 | 1 << IPV4_GROUP - 1}))\n"
        fds, image = dumped(MAKE + bind + "ready(s=s.fileno())\nwait()\n")
        (kept,) = (one.netlink for one in image.descriptions if one.WhichOneof("kind") == "netlink")
        assert list(kept.groups) == [LINK_GROUP, IPV4_GROUP]
        with opened(image) as woken, socket.socket(fileno=os.dup(woken(fds["s"]))) as again:
            port, groups = again.getsockname()
            assert (port, groups) == (kept.port, 1 << LINK_GROUP - 1 | 1 << IPV4_GROUP - 1)

    acting(body)


def test_one_that_is_connected_to_others_is_refused() -> None:
    with holder(MAKE + "s.connect((0, 1))\nready(s=s.fileno())\nwait()\n") as tree:
        tree.ready()
        assert [reason.why for reason in tree.survey()] == ["it is connected to a group or another program"]


def test_answers_that_wait_are_refused() -> None:
    ask = "s.send(struct.pack('=IHHIIB3x', 20, 18, 0x301, 1, 0, 0))\nselect.select([s], [], [])\n"
    with holder(MAKE + ask + "ready(s=s.fileno())\nwait()\n") as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "messages of the kernel wait in it" in reason.why and reason.passing


@pytest.mark.parametrize(("kind", "protocol", "group", "wrong"), [
    (socket.SOCK_RAW, ROUTE, 1, False), (socket.SOCK_STREAM, ROUTE, 1, True), (socket.SOCK_RAW, 31, 1, True),
    (socket.SOCK_RAW, ROUTE, 0, True),
])  # fmt: skip
def test_sockets_that_no_kernel_has(kind: int, protocol: int, group: int, wrong: bool) -> None:
    image = Tree()
    netlink = image.descriptions.add(flags=os.O_RDWR).netlink
    netlink.type, netlink.protocol = kind, protocol
    netlink.groups.append(group)
    assert bool(descriptors.validate(image)) == wrong

"""The kernel's lists of sockets: what they say of sockets of this very process."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack

import pytest

from torpor.objects.sockets.sock_diag import RCV_SHUTDOWN, SEND_SHUTDOWN, Dump, attributes, shut_udp
from torpor.objects.sockets.unix_diag import Diagnosis


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def test_unix_sockets_by_their_inodes() -> None:
    with ExitStack() as stack:
        left, right = map(stack.enter_context, socket.socketpair())
        lonely = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"\0torpor-test-{os.getpid()}".encode())
        listener.listen(7)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(listener.getsockname())
        right.shutdown(socket.SHUT_WR)
        seen = Diagnosis()
        assert seen.unavailable == ""
        assert seen.sockets[inode(left)].peer == inode(right)
        assert seen.sockets[inode(right)].shutdown == SEND_SHUTDOWN
        assert seen.sockets[inode(left)].shutdown == RCV_SHUTDOWN
        assert seen.sockets[inode(lonely)].peer is None
        known = seen.sockets[inode(listener)]
        assert known.name == listener.getsockname() and (known.waiting, known.backlog) == (1, 7)
        assert known.clients == (inode(client),)
        assert seen.sockets[inode(client)].peer == 0, "it is not accepted yet"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(("how", "sides"), [(socket.SHUT_RD, RCV_SHUTDOWN), (socket.SHUT_WR, SEND_SHUTDOWN), (None, 0)])
def test_which_sides_of_udp_sockets_were_shut(family: socket.AddressFamily, how: int | None, sides: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        try:
            one.bind((host, 0))
        except OSError:
            pytest.skip("no such addresses here")
        one.connect(one.getsockname())
        if how is not None:
            one.shutdown(how)
        assert shut_udp(family).get(inode(one), 0) == sides


def test_what_the_kernel_does_not_list_is_told() -> None:
    refused = Dump(struct.pack("=BBBxI48x", 99, 0, 0, 0))
    assert refused.unavailable and list(refused.bodies()) == []


def test_attributes_are_padded() -> None:
    raw = struct.pack("=HH3sxHH4s", 7, 1, b"abc", 8, 2, b"defg")
    assert list(attributes(raw)) == [(1, b"abc"), (2, b"defg")]
    assert list(attributes(raw[:3])) == []

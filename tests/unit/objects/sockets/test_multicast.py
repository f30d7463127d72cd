"""Memberships in multicast groups: found by asking, joined again, and judged before they are joined."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor import procfs
from torpor.image.image_pb2 import Membership
from torpor.objects.sockets import multicast
from torpor.objects.sockets.multicast import MCAST_BLOCK_SOURCE, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP, Group

GROUP4, GROUP6 = bytes([239, 1, 2, 3]), socket.inet_pton(socket.AF_INET6, "ff02::1234")
LO = "lo"
SOURCES = [bytes([10, 0, 0, last]) for last in (1, 2, 3, 4, 5)]


@pytest.fixture
def member() -> Iterator[socket.socket]:
    """A UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        yield sock


def head(device: str, group: bytes) -> bytes:
    return struct.pack("=I4x", socket.if_nametoindex(device)) + storage(group)


def storage(address: bytes) -> bytes:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    between = b"" if family == socket.AF_INET else bytes(4)
    return (struct.pack("=HH", family, 0) + between + address).ljust(128, b"\0")


def found(sock: socket.socket) -> list[Membership]:
    return multicast.memberships(sock.fileno(), sock.family, multicast.groups())


def test_a_socket_of_no_group_has_none(member: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.IPPROTO_IP, MCAST_JOIN_GROUP, head(LO, GROUP4))
        assert found(member) == []
        assert found(other) == [Membership(family=socket.AF_INET, device=LO, group=GROUP4)]


def test_a_group_is_joined_again_with_its_sources(member: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sources there are."""
    other = bytes([239, 1, 2, 4])
    member.setsockopt(socket.IPPROTO_IP, MCAST_JOIN_GROUP, head(LO, GROUP4))
    for source in SOURCES:
        member.setsockopt(socket.IPPROTO_IP, MCAST_BLOCK_SOURCE, head(LO, GROUP4) + storage(source))
        member.setsockopt(socket.IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, head(LO, other) + storage(source))
    was = sorted(found(member), key=lambda one: one.group)
    assert [one.only for one in was] == [False, True]
    assert [sorted(one.sources) for one in was] == [SOURCES, SOURCES]
    monkeypatch.setattr(multicast._ask, "__defaults__", (2,))
    assert sorted(found(member), key=lambda one: one.group) == was
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        assert list(multicast.validate(was)) == []
        multicast.join(again, was)
        assert sorted(found(again), key=lambda one: one.group) == was


def test_a_socket_of_ipv6_may_be_in_groups_of_both_families() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, MCAST_JOIN_GROUP, head(LO, GROUP6))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error.strerror}")
        sock.setsockopt(socket.IPPROTO_IP, MCAST_JOIN_GROUP, head(LO, GROUP4))
        was = found(sock)
        assert {(one.family, one.group) for one in was} == {(socket.AF_INET, GROUP4), (socket.AF_INET6, GROUP6)}
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as again:
            multicast.join(again, was)
            assert found(again) == was


IGMP = b"""Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
2\tenx00e04c680001:     2      V3
\t\t\t\t030201EF     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0
"""


def test_a_device_with_a_long_name_is_called_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read", lambda path: IGMP if Path(path).name == "igmp" else b"")
    everywhere = bytes([224, 0, 0, 1])
    assert multicast.groups() == [
        Group(socket.AF_INET, 1, "lo", everywhere),
        Group(socket.AF_INET, 2, "enx00e04c680001", GROUP4),
        Group(socket.AF_INET, 2, "enx00e04c680001", everywhere),
    ]


def test_an_image_names_groups_that_can_be_joined() -> None:
    good = Membership(family=socket.AF_INET, device=LO, group=GROUP4, sources=SOURCES)
    assert list(multicast.validate([good])) == []
    for bad in (
        Membership(family=socket.AF_UNIX, device=LO, group=GROUP4),
        Membership(family=socket.AF_INET, device=LO, group=GROUP6),
        Membership(family=socket.AF_INET6, device=LO, group=GROUP6, sources=[SOURCES[0]]),
        Membership(family=socket.AF_INET, device=LO, group=GROUP4, sources=[b""]),
        Membership(),
    ):
        (reason,) = multicast.validate([bad])
        assert reason.why == "it has an invalid membership of a multicast group"
    (reason,) = multicast.validate([Membership(family=socket.AF_INET, device="a\0b", group=GROUP4)])
    assert "no network device" in reason.why
    (reason,) = multicast.validate([Membership(family=socket.AF_INET, device="nowhere0", group=GROUP4)])
    assert reason.subject == "the multicast group 239.1.2.3" and "no network device nowhere0" in reason.why

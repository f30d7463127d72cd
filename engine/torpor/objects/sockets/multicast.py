"""Memberships in multicast groups (ip(7), ipv6(7)), which belong to a socket.

The kernel lists a host's groups (/proc/net/igmp, igmp6), but not their sockets. But MCAST_MSFILTER (RFC 3678) returns a
socket's sources in a group, or an error if it is not a member: so each socket is asked for each group. Kept: the
device, by its name, the group, and the sources that are allowed or blocked.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Membership
from torpor.remote.sys import syscall

# include/uapi/linux/in.h
MCAST_JOIN_GROUP, MCAST_BLOCK_SOURCE, MCAST_JOIN_SOURCE_GROUP, MCAST_MSFILTER = 42, 43, 46, 48
MCAST_INCLUDE = 1
STORAGE = 128
"""sizeof(struct sockaddr_storage)."""
USUAL_SOURCES = 64
"""Room for the sources of one group; net.ipv4.igmp_max_msf is 10, and may be raised."""
_LEVELS: dict[int, int] = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}


@dataclass(frozen=True)
class Group:
    """A group with a member on this host."""

    family: int
    index: int
    """The index of the device."""
    device: str
    address: bytes


def groups() -> list[Group]:
    """The groups of all sockets in this network namespace, and of the host itself."""
    return [*_groups4(), *_groups6()]


def _lines(name: str) -> list[list[str]]:
    try:
        return [line.split() for line in procfs.read(f"/proc/net/{name}").decode().splitlines()]
    except FileNotFoundError:  # a kernel without it
        return []


def _groups4() -> Iterator[Group]:
    index, device = 0, ""
    for fields in _lines("igmp")[1:]:
        if len(fields[0]) == 8 and len(fields) == 4:
            yield Group(socket.AF_INET, index, device, int(fields[0], 16).to_bytes(4, sys.byteorder))
        else:
            index, device = int(fields[0]), fields[1].rstrip(":")  # a long name touches the colon behind it


def _groups6() -> Iterator[Group]:
    for index, device, address, *_ in _lines("igmp6"):
        yield Group(socket.AF_INET6, int(index), device, bytes.fromhex(address))


def memberships(fd: int, family: int, of_host: Iterable[Group]) -> list[Membership]:
    """The groups of which a socket is a member. Raises OSError.

    Args:
        fd: the socket.
        family: its family; an IPv6 socket may be a member of groups of both families.
        of_host: all groups on this host.
    """
    found = []
    for group in of_host:
        if family in (group.family, socket.AF_INET6):
            member = _ask(fd, group)
            if member is not None:
                found.append(member)
    return found


def _ask(fd: int, group: Group, room: int = USUAL_SOURCES) -> Membership | None:
    value = bytearray(struct.pack("=I4x", group.index) + _storage(group.family, group.address))
    value += struct.pack("=II", 0, room) + bytes(room * STORAGE)  # struct group_filter
    length = array("I", (len(value),))
    try:
        syscall(NR.getsockopt, fd, _LEVELS[group.family], MCAST_MSFILTER, value, length)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL, errno.ENOPROTOOPT):
            return None  # it is not a member, or the device is gone
        raise
    mode, count = struct.unpack_from("=II", value, 8 + STORAGE)
    if count > room:
        return _ask(fd, group, count)
    at = 16 + STORAGE
    sources = [_address(group.family, value[at + k * STORAGE :]) for k in range(count)]
    return Membership(
        family=group.family, device=group.device, group=group.address, only=mode == MCAST_INCLUDE, sources=sources
    )


def _storage(family: int, address: bytes) -> bytes:
    """A struct sockaddr_storage without a port."""
    head = struct.pack("=HH", family, 0) + (bytes(4) if family == socket.AF_INET6 else b"")
    return (head + address).ljust(STORAGE, b"\0")


def _address(family: int, storage: bytes | bytearray) -> bytes:
    return bytes(storage[8:24] if family == socket.AF_INET6 else storage[4:8])


# Restore


def validate(found: Iterable[Membership]) -> Iterator[Reason]:
    """Say which groups a socket cannot join here."""
    for one in found:
        if one.family not in _LEVELS or any(len(a) != (4, 16)[one.family == socket.AF_INET6] for a in _addresses(one)):
            yield Reason("the image", "it has an invalid membership of a multicast group")
            continue
        try:
            socket.if_nametoindex(one.device)
        except (OSError, ValueError):  # the latter: no device can have that name
            group = socket.inet_ntop(one.family, one.group)
            yield Reason(f"the multicast group {group}", f"this host has no network device {one.device} to hear it on")


def _addresses(one: Membership) -> list[bytes]:
    return [one.group, *one.sources]


def join(sock: socket.socket, found: Iterable[Membership]) -> None:
    """Let a socket join its groups again. Raises OSError."""
    for one in found:
        level, group = _LEVELS[one.family], _storage(one.family, one.group)
        head = struct.pack("=I4x", socket.if_nametoindex(one.device))  # struct group_req, group_source_req
        if not one.only:
            sock.setsockopt(level, MCAST_JOIN_GROUP, head + group)
        for source in one.sources:
            name = MCAST_JOIN_SOURCE_GROUP if one.only else MCAST_BLOCK_SOURCE
            sock.setsockopt(level, name, head + group + _storage(one.family, source))

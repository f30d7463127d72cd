"""Internet addresses and ports of sockets: from the kernel's struct sockaddr, for people, and for Python."""

from __future__ import annotations

import errno
import socket
import sys
from array import array
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall

LONGEST_NAME = 128
"""sizeof(struct sockaddr_storage)."""
SOCKADDR_IN, SOCKADDR_IN6 = 16, 28
"""sizeof(struct sockaddr_in), sizeof(struct sockaddr_in6)."""


def local_name(fd: int) -> bytes:
    """The struct sockaddr of this end."""
    return _name(NR.getsockname, fd)


def peer_name(fd: int) -> bytes:
    """The struct sockaddr of the other end; empty if it is not connected."""
    try:
        return _name(NR.getpeername, fd)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return b""


def _name(call: int, fd: int) -> bytes:
    value, length = bytearray(LONGEST_NAME), array("I", (LONGEST_NAME,))
    syscall(call, fd, value, length)
    return bytes(value[: length[0]])


class Address(NamedTuple):
    """An internet address and a port."""

    host: IPv4Address | IPv6Address
    port: int
    scope: int

    def __str__(self) -> str:
        scope = f"%{self.scope}" if self.scope else ""
        return f"{self.host}:{self.port}" if self.host.version == 4 else f"[{self.host}{scope}]:{self.port}"


def address(name: bytes) -> Address:
    """The address in a struct sockaddr. An IPv4-mapped IPv6 address (``::ffff:1.2.3.4``) becomes an IPv4 address.

    Raises:
        ValueError: it is not an internet address.
    """
    family = int.from_bytes(name[:2], sys.byteorder)
    port = int.from_bytes(name[2:4], "big")
    if family == socket.AF_INET and len(name) >= SOCKADDR_IN:
        return Address(IPv4Address(name[4:8]), port, 0)
    if family == socket.AF_INET6 and len(name) >= SOCKADDR_IN6:
        host = IPv6Address(name[8:24])
        scope = int.from_bytes(name[24:28], sys.byteorder)
        return Address(host.ipv4_mapped or host, port, scope)
    raise ValueError(f"no internet address: {name.hex()}")


def for_python(where: Address, family: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """An address for Python's sockets of this family."""
    if family == socket.AF_INET:
        return str(where.host), where.port
    host = str(where.host) if isinstance(where.host, IPv6Address) else f"::ffff:{where.host}"
    return host, where.port, 0, where.scope

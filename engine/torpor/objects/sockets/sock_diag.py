"""The kernel's lists of sockets.

Documented in: sock_diag(7); include/uapi/linux/sock_diag.h, inet_diag.h, netlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
ANY = (1 << 32) - 1
RCV_SHUTDOWN, SEND_SHUTDOWN = 1, 2
"""Which sides were shut down, as these lists say it (include/net/sock.h)."""
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

INET_DIAG_SHUTDOWN = 8
_TCP_BOUND_INACTIVE = 13
"""A state that only these lists have (include/net/tcp_states.h)."""
_INET_REQUEST = struct.Struct("=BBBxI48x")
_INET_INODE, _INET_MESSAGE = 68, 72
"""In struct inet_diag_msg, where the inode is; and its size."""


class Dump:
    """A list of sockets; read at once, parsed later."""

    def __init__(self, request: bytes) -> None:
        """Read it.

        Args:
            request: struct unix_diag_req, or struct inet_diag_req_v2.
        """
        self._raw: list[bytes] = []
        self.unavailable = ""
        """Why the kernel gives no data; empty if it does."""
        header = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
                link.setblocking(True)
                link.send(header + request)
                while not self._complete():
                    self._raw.append(link.recv(1 << 20))
        except OSError as error:
            self.unavailable = error.strerror or str(error)

    def _complete(self) -> bool:
        if not self._raw:
            return False
        for kind, body in _messages(self._raw[-1]):
            if kind == NLMSG_ERROR:
                self.unavailable = os.strerror(-struct.unpack_from("=i", body)[0])
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return True
        return False

    def bodies(self) -> Iterator[bytes]:
        """What it says of each socket, a structure and attributes behind it."""
        for raw in self._raw:
            for kind, body in _messages(raw):
                if kind == SOCK_DIAG_BY_FAMILY:
                    yield body


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message, each with its number."""
    at = 0
    while at + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        yield kind, raw[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def shut_udp(family: int) -> dict[int, int]:
    """Which sides of the host's UDP sockets were shut down, by inode.

    Only of those that have a port (net/ipv4/udp_diag.c walks the table of ports), and of none where the kernel lacks
    CONFIG_INET_UDP_DIAG.
    """
    found = {}
    for body in Dump(_INET_REQUEST.pack(family, socket.IPPROTO_UDP, 0, ANY)).bodies():
        (inode,) = struct.unpack_from("=I", body, _INET_INODE)
        found[inode] = dict(attributes(body[_INET_MESSAGE:])).get(INET_DIAG_SHUTDOWN, b"\0")[0]
    return found


def bound_tcp(family: int) -> set[int]:
    """The inodes of the TCP sockets that hold a port and neither are connected nor listen.

    Empty before Linux 6.8 (91051f003948), and where the kernel lacks CONFIG_INET_TCP_DIAG.
    """
    request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_BOUND_INACTIVE)
    return {struct.unpack_from("=I", body, _INET_INODE)[0] for body in Dump(request).bodies()}


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(raw):
        length, kind, *_ = _HEADER.unpack_from(raw, at)
        yield kind, raw[at + _HEADER.size : at + length]
        at += (length + 3) & ~3

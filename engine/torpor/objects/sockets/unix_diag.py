"""The kernel's list of all unix sockets: names, connections, and connections that were not accepted.

Documented in: sock_diag(7); include/uapi/linux/unix_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torpor.objects.sockets import unix_paths

# include/uapi/linux/sock_diag.h, unix_diag.h, netlink.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS, UDIAG_SHOW_RQLEN = 1, 2, 4, 8, 16
UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN, UNIX_DIAG_SHUTDOWN = 0, 1, 2, 3, 4, 6
ANY = (1 << 32) - 1
HEADER = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBHIIIII")
MESSAGE = struct.Struct("=BBBBIII")
ATTRIBUTE = struct.Struct("=HH")


class Known(NamedTuple):
    """The kernel's data on a unix socket."""

    state: int
    name: bytes
    peer: int | None
    """The inode of the other end; 0: it is closed or not accepted yet; None: it was never connected."""
    shutdown: int
    inode: int | None
    """The inode of the file of its name: the lower 32 bits."""
    waiting: int
    """For a listener: the number of connections that were not accepted."""
    backlog: int
    """For a listener."""
    clients: tuple[int, ...]
    """For a listener: the inodes of the sockets whose connections were not accepted, in order; 0: it is closed."""


class Diagnosis:
    """Every unix socket of this network namespace, by inode; read at once, parsed on first use."""

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self.unavailable = ""
        """Why the kernel gives no data; empty if it does."""
        shown = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN
        request = REQUEST.pack(socket.AF_UNIX, 0, 0, ANY, 0, shown, ANY, ANY)
        length = HEADER.size + len(request)
        header = HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
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

    @cached_property
    def sockets(self) -> dict[int, Known]:
        """The sockets by inode."""
        found = {}
        for raw in self._raw:
            for kind, body in _messages(raw):
                if kind == SOCK_DIAG_BY_FAMILY:
                    _, _, state, _, inode, _, _ = MESSAGE.unpack_from(body)
                    attributes = dict(_attributes(body[MESSAGE.size :]))
                    peer, file = attributes.get(UNIX_DIAG_PEER), attributes.get(UNIX_DIAG_VFS)
                    waiting, backlog = struct.unpack("=II", attributes.get(UNIX_DIAG_RQLEN, bytes(8)))
                    found[inode] = Known(
                        state,
                        unix_paths.of(attributes.get(UNIX_DIAG_NAME, b"")),
                        struct.unpack("=I", peer)[0] if peer else None,
                        attributes.get(UNIX_DIAG_SHUTDOWN, b"\0")[0],
                        struct.unpack_from("=I", file)[0] if file else None,
                        waiting,
                        backlog,
                        tuple(number for (number,) in struct.iter_unpack("=I", attributes.get(UNIX_DIAG_ICONS, b""))),
                    )
        return found


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(raw):
        length, kind, *_ = HEADER.unpack_from(raw, at)
        yield kind, raw[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(raw):
        length, kind = ATTRIBUTE.unpack_from(raw, at)
        yield kind, raw[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3

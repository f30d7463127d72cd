"""The kernel's list of all unix sockets: names, connections, and connections that were not accepted.

Documented in: sock_diag(7); include/uapi/linux/unix_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from functools import cached_property
from typing import NamedTuple

from torpor.objects.sockets import unix_paths
from torpor.objects.sockets.sock_diag import ANY, Dump, attributes

# include/uapi/linux/unix_diag.h
UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS, UDIAG_SHOW_RQLEN = 1, 2, 4, 8, 16
UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN, UNIX_DIAG_SHUTDOWN = 0, 1, 2, 3, 4, 6
REQUEST = struct.Struct("=BBHIIIII")
MESSAGE = struct.Struct("=BBBBIII")


class Known(NamedTuple):
    """The kernel's data on a unix socket."""

    state: int
    name: bytes
    peer: int | None
    """The inode of the other end; 0: it is closed or not accepted yet; None: it was never connected."""
    shutdown: int
    inode: int | None
    """The inode of the file of its name: the lower 32 bits."""
    device: int
    """The device of that file's file system."""
    waiting: int
    """For a listener: the number of connections that were not accepted."""
    backlog: int
    """For a listener."""
    clients: tuple[int, ...]
    """For a listener: the inodes of the sockets whose connections were not accepted, in order; 0: it is closed."""


class Diagnosis:
    """Every unix socket of this network namespace, by inode; read at once, parsed on first use."""

    def __init__(self) -> None:
        shown = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN
        self._dump = Dump(REQUEST.pack(socket.AF_UNIX, 0, 0, ANY, 0, shown, ANY, ANY))

    @property
    def unavailable(self) -> str:
        """Why the kernel gives no data; empty if it does."""
        return self._dump.unavailable

    @cached_property
    def sockets(self) -> dict[int, Known]:
        """The sockets by inode."""
        found = {}
        for body in self._dump.bodies():
            _, _, state, _, inode, _, _ = MESSAGE.unpack_from(body)
            answer = dict(attributes(body[MESSAGE.size :]))
            peer, file = answer.get(UNIX_DIAG_PEER), answer.get(UNIX_DIAG_VFS)
            waiting, backlog = struct.unpack("=II", answer.get(UNIX_DIAG_RQLEN, bytes(8)))
            found[inode] = Known(
                state,
                unix_paths.of(answer.get(UNIX_DIAG_NAME, b"")),
                struct.unpack("=I", peer)[0] if peer else None,
                answer.get(UNIX_DIAG_SHUTDOWN, b"\0")[0],
                struct.unpack_from("=I", file)[0] if file else None,
                _device(struct.unpack_from("=4xI", file)[0]) if file else 0,
                waiting,
                backlog,
                tuple(number for (number,) in struct.iter_unpack("=I", answer.get(UNIX_DIAG_ICONS, b""))),
            )
        return found


def _device(number: int) -> int:
    """A device as stat(2) shows it, of the kernel's own number (include/linux/kdev_t.h: 12 and 20 bits)."""
    return os.makedev(number >> 20, number & 0xFFFFF)

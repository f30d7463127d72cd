"""The sizes of sockets' buffers: those that a program chose (SO_SNDBUF, SO_RCVBUF), and room for what is put into them.

A user may choose up to net.core.wmem_max and rmem_max; CAP_NET_ADMIN lets go beyond (SO_SNDBUFFORCE, SO_RCVBUFFORCE).
The kernel doubles what is asked for, for its own overhead, and returns the doubled value (socket(7)).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from torpor.image import image_pb2 as pb

SO_BUF_LOCK = 72
"""include/uapi/asm-generic/socket.h: which sizes a program chose (Linux 5.14)."""
NOT_HERE = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)
"""Errors if this kernel does not have an option, or not for such a socket."""
LARGEST = 1 << 30
"""A request for this size gives net.core.wmem_max or rmem_max."""
SEND_LOCK, RECEIVE_LOCK = 1, 2
"""The bits of SO_BUF_LOCK (SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK)."""
LOCKS = {socket.SO_SNDBUF: SEND_LOCK, socket.SO_RCVBUF: RECEIVE_LOCK}
_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}
"""SO_SNDBUFFORCE and SO_RCVBUFFORCE."""
_NAMES = {socket.SO_SNDBUF: ("send buffer", "wmem_max"), socket.SO_RCVBUF: ("receive buffer", "rmem_max")}
_SOL = socket.SOL_SOCKET


def set_size(sock: socket.socket, name: int, size: int) -> None:
    """Set a buffer to the size that getsockopt() returned, or as near to it as this user may: `smaller` tells."""
    sock.setsockopt(_SOL, name, size // 2)
    if sock.getsockopt(_SOL, name) < size:
        with suppress(PermissionError):
            sock.setsockopt(_SOL, _FORCE[name], size // 2)


def enlarge(sock: socket.socket, name: int) -> bool:
    """Make a socket's buffer as large as any user may, never smaller. Returns False if it has that size already.

    A privileged program or the kernel may have made it larger than that.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(_SOL, name, LARGEST)
        most = probe.getsockopt(_SOL, name)
    if sock.getsockopt(_SOL, name) >= most:
        return False
    sock.setsockopt(_SOL, name, LARGEST)
    return True


def let_go_of_size(sock: socket.socket) -> None:
    """Let the kernel choose the sizes of a socket's buffers again, if it supports that."""
    try:
        sock.setsockopt(_SOL, SO_BUF_LOCK, 0)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise


def smaller(image: pb.Tree) -> Iterator[str]:
    """Warn about buffers that come back smaller, since this user may not make them as large on this host."""
    for name, (what, limit) in _NAMES.items():
        if not (sizes := [size for one in image.descriptions for size in _sizes(one, name)]):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            set_size(probe, name, max(sizes))
            most = probe.getsockopt(_SOL, name)
        if count := sum(size > most for size in sizes):
            whose = f"of {count} sockets" if count > 1 else "of a socket"
            yield (
                f"the {what} {whose} was made {max(sizes)} bytes large, and comes back with {most}: net.core.{limit}"
                " of this host allows no more"
            )


def _sizes(description: pb.Description, name: int) -> Iterator[int]:
    kind = description.WhichOneof("kind")
    if kind in ("unix", "tcp", "udp", "netlink"):
        for option in getattr(description, kind).options:
            if (option.level, option.name) == (_SOL, name):
                yield struct.unpack("i", option.value)[0]

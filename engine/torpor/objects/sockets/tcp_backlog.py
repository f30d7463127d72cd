"""TCP connections that were not accepted yet: no process has their other end, but the kernel lists it.

A row of /proc/net/tcp without an inode is a connection in a listener's queue, with the number of bytes received on it,
which nobody can read before it is accepted (Documentation/networking/proc_net_tcp.rst; net/ipv4/tcp_ipv4.c,
get_tcp4_sock). The order of the queue is not shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from torpor import procfs
from torpor.objects.sockets.tcp_states import State

Place = tuple[IPv4Address | IPv6Address, int]
"""An address and a port."""

_WORD = 8  # hexadecimal digits, in host byte order


class _Row(NamedTuple):
    local: Place
    remote: Place
    state: int
    received: int
    inode: int


class Waiting(NamedTuple):
    """A connection that was not accepted."""

    received: int
    """Bytes."""
    deferred: bool
    """Whether it cannot be accepted yet, as with TCP_DEFER_ACCEPT before its first byte."""


def waiting() -> dict[tuple[Place, Place], Waiting]:
    """The connections that were not accepted, by (listener's end, other end)."""
    # A FIN counts as a byte; before the handshake is complete the number means something else.
    beside = {int(State.ESTABLISHED): 0, int(State.CLOSE_WAIT): 1}
    return {
        (row.local, row.remote): Waiting(
            row.received - beside[row.state] if row.state in beside else 0, row.state == State.SYN_RECV
        )
        for row in _rows()
        if row.inode == 0 and row.state in (*beside, State.SYN_RECV)
    }


def _rows() -> Iterator[_Row]:
    for name in ("tcp", "tcp6"):
        try:
            lines = procfs.read(f"/proc/net/{name}").decode().splitlines()[1:]
        except FileNotFoundError:  # IPv6 is off
            continue
        for line in lines:
            _, local, remote, state, queues, _, _, _, _, inode, *_ = line.split()
            received = int(queues.partition(":")[2], 16)
            yield _Row(_place(local), _place(remote), int(state, 16), received, int(inode))


def _place(text: str) -> Place:
    host, _, port = text.partition(":")
    words = (host[at : at + _WORD] for at in range(0, len(host), _WORD))
    address = ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address, int(port, 16)
    return address, int(port, 16)

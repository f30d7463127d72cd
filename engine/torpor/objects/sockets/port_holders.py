"""Who uses a TCP port, for messages: /proc/net/tcp and tcp6 name the socket, /proc/PID/fd the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from torpor import procfs
from torpor.remote.naming import describe_process

TIME_WAIT = "06"


class PortHolder(NamedTuple):
    """Who uses a port."""

    words: str
    """The process, for messages."""
    seconds: int | None = None
    """If only closed connections (TIME_WAIT) use the port: in how many seconds they release it."""


class _Row(NamedTuple):
    state: str
    inode: str
    seconds: int
    """Seconds until its timer expires."""


def find(port: int) -> PortHolder:
    """Find who uses this port."""
    found = list(_sockets(port))
    if found and all(row.state == TIME_WAIT for row in found):
        return PortHolder("connections that have ended", max(row.seconds for row in found) + 1)
    wanted = {f"socket:[{row.inode}]" for row in found if row.state != TIME_WAIT}
    for pid, _, link in procfs.open_descriptors():
        if link in wanted:
            return PortHolder(describe_process(pid))
    return PortHolder("a program of another user, or one that is ending")


def _sockets(port: int) -> Iterator[_Row]:
    """Each socket with a local port (Documentation/networking/proc_net_tcp.rst)."""
    ticks = os.sysconf("SC_CLK_TCK")
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except FileNotFoundError:  # IPv6 is off
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                yield _Row(fields[3], fields[9], int(fields[5].rpartition(":")[2], 16) // ticks)

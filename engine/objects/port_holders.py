"""Who has a TCP port, for people: /proc/net/tcp and tcp6 name the socket, /proc/PID/fd the process."""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor.remote.freeze import describe_process

OLD_CONNECTIONS = "old connections"
TIME_WAIT = "06"


def find(port: int) -> str:
    """Who has this port, in words; OLD_CONNECTIONS when only connections have it that have ended (TIME_WAIT)."""
    found = list(_sockets(port))
    if found and all(state == TIME_WAIT for state, _ in found):
        return OLD_CONNECTIONS
    inodes = {inode for state, inode in found if state != TIME_WAIT}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:  # another user's, or gone
            continue
        if any(link == f"socket:[{inode}]" for link in links for inode in inodes):
            return describe_process(int(pid))
    return "a program of another user, or one that is ending"


def _sockets(port: int) -> Iterator[tuple[str, str]]:
    """State and inode of each socket at a local port (Documentation/networking/proc_net_tcp.rst)."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except FileNotFoundError:  # IPv6 is off
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[3], fields[9]

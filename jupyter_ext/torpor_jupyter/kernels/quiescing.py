"""The TCP sockets of a kernel: wait until no data is in transit, or until all clients are connected again.

ZeroMQ drops the messages that are queued for a connection when it dies. So a freeze stops the kernel's own threads
first, and lets ZeroMQ's I/O threads run until the sockets are empty. A wake lets the I/O threads run first, until every
client is connected. Both states are read from /proc/net/tcp (proc(5)): bytes that are sent but not acknowledged, and
bytes that are received but not read.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from torpor import processes
from torpor.errors import CheckpointFailed

QUIET = 0.02
"""Seconds without data in transit after which none is expected: ZeroMQ passes a message on within microseconds."""
PATIENCE = 10.0
"""Seconds for the sockets to become empty."""
RECONNECT_PATIENCE = 10.0
"""Seconds for all clients to reconnect: ZeroMQ tries every 0.1 s (ZMQ_RECONNECT_IVL)."""
SETTLE_PATIENCE = 0.5
"""Seconds for the threads of a waiting kernel to notice that their connections are dead."""
_INTERVAL = 0.004
_ESTABLISHED, _LISTEN = 0x01, 0x0A  # include/net/tcp_states.h
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def is_io_thread(name: str) -> bool:
    """Whether ZeroMQ gave a thread this name (``ZMQbg/IO/0``, ``ZMQbg/Reaper``)."""
    return name.startswith("ZMQbg/")


class KernelSockets:
    """The traffic at the ports of one kernel. Only TCP can be observed; with another transport no port is watched."""

    def __init__(self, connection: Mapping[str, object]) -> None:
        """Watch the ports of a kernel's connection file."""
        tcp = connection.get("transport", "tcp") == "tcp"
        self.ports = {port for name in PORTS if tcp and isinstance(port := connection.get(name), int)}

    def wait_drained(self, pid: int) -> None:
        """Wait until the I/O threads of a process sleep and no data is in transit. For `LastToStop.drained`.

        Raises CheckpointFailed if that does not happen within PATIENCE seconds.
        """
        if not self._quiet(lambda: _sleep(pid, is_io_thread), PATIENCE):
            raise CheckpointFailed(
                f"the kernel has not stopped printing for {PATIENCE:.0f} s, and this output would be lost",
                advice="try again when it prints less",
            )

    def wait_connected(self, expected: Mapping[int, int]) -> bool:
        """Wait until each port has the expected number of connections, with their handshakes read.

        Ports at which nobody listens do not count: a kernel that was saved while it started opens them only when all
        its threads run.

        Returns:
            False if that did not happen within RECONNECT_PATIENCE seconds.
        """
        open_ports = {port for port, _ in _listeners(self.ports)}
        wanted = Counter({port: count for port, count in expected.items() if port in open_ports})
        return self._quiet(lambda: not wanted - self._connections(), RECONNECT_PATIENCE)

    def _quiet(self, also: Callable[[], bool], patience: float) -> bool:
        deadline = time.monotonic() + patience
        since = None
        while self.ports:
            now = time.monotonic()
            if _queued(self.ports) or not also():
                since = None
            elif since is None:
                since = now
            elif now - since >= QUIET:
                break
            if now > deadline:
                return False
            time.sleep(_INTERVAL)
        return True

    def _connections(self) -> Counter[int]:
        return Counter(local for local, _, state, _, _ in _sockets(self.ports) if state == _ESTABLISHED)


def debugger_outside(pid: int) -> int | None:
    """The PID of debugpy's adapter, if a process is connected to one that is not its descendant.

    The adapter leaves its parent and its session (debugpy/adapter/__main__.py).
    """
    own = _inodes(pid)
    sockets = list(_sockets())
    ports = {local for local, _, _, _, inode in sockets if f"socket:[{inode}]" in own}
    below = set(processes.tree(pid))
    for other in processes.pids():
        with suppress(OSError):  # another user's, or gone
            words = Path(f"/proc/{other}/cmdline").read_bytes().split(b"\0")
            if other not in below and b"--for-server" in words and any(b"debugpy" in word for word in words):
                theirs = _inodes(other)
                if any(f"socket:[{inode}]" in theirs and remote in ports for _, remote, _, _, inode in sockets):
                    return other
    return None


def _inodes(pid: int) -> set[str]:
    """The link targets in /proc/PID/fd. A descriptor that is closed meanwhile is left out."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(fd))
    return found


def listening_process(connection: Mapping[str, object]) -> int | None:
    """The process of this user that listens at all ports of a kernel's connection file, if there is one."""
    wanted = KernelSockets(connection).ports
    if not wanted:
        return None
    there = _listeners(wanted)
    if {port for port, _ in there} != wanted:
        return None
    inodes = {f"socket:[{inode}]" for _, inode in there}
    holders = set()
    for pid in processes.pids():
        with suppress(OSError):  # another user's, or gone
            if inodes <= _inodes(pid):
                holders.add(pid)
    # Its forks have the listeners, too.
    return next((pid for pid in sorted(holders) if processes.parent(pid) not in holders), None)


def _listeners(ports: Collection[int]) -> list[tuple[int, int]]:
    """Port and inode of each listening socket."""
    return [(local, inode) for local, _, state, _, inode in _sockets(ports) if state == _LISTEN and local in ports]


def _queued(ports: Collection[int]) -> int:
    """The number of bytes in transit, plus connections that were not accepted yet."""
    return sum(queued for _, _, _, queued, _ in _sockets(ports))


def _sockets(ports: Collection[int] | None = None) -> list[tuple[int, int, int, int, int]]:
    """The TCP sockets with one of these ports at one end, or all of them.

    Each as local port, remote port, state, bytes queued (of a listener: connections to be accepted), and inode. The
    engine's readers of this file are not public: they take the sockets of a frozen tree.
    """
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            _, local, remote, state, queues, _, _, _, _, inode, *_ = line.split()
            local_port, remote_port = (int(address.rpartition(":")[2], 16) for address in (local, remote))
            if (ports is None or local_port in ports or remote_port in ports) and int(state, 16) in (
                _ESTABLISHED,
                _LISTEN,
            ):
                sending, _, receiving = queues.partition(":")
                queued = int(receiving, 16) + (int(sending, 16) if int(state, 16) == _ESTABLISHED else 0)
                found.append((local_port, remote_port, int(state, 16), queued, int(inode)))
    return found


def wait_settled(pid: int) -> None:
    """Wait until all threads of a process have slept for QUIET seconds, at most SETTLE_PATIENCE seconds in all."""
    deadline = time.monotonic() + SETTLE_PATIENCE
    since = time.monotonic()
    while (now := time.monotonic()) < min(since + QUIET, deadline):
        if not _sleep(pid, lambda name: True):
            since = now
        time.sleep(_INTERVAL)


def _sleep(pid: int, which: Callable[[str], bool]) -> bool:
    """Whether all threads of a process sleep that have a matching name."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text(errors="replace").partition("(")[2].rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if which(name) and not rest.startswith("S"):
            return False
    return True

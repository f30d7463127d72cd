"""The texts of /proc/PID as they were under the freeze."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.objects.paths.directories import Folder
from torpor.objects.process import security_labels, sharing


def own_pid_of(status: Mapping[bytes, bytes]) -> int:
    """A process's PID in its own PID namespace, from its /proc/PID/status."""
    return int(status[b"NSpid"].split()[-1])


def private_memory(status: Mapping[bytes, bytes]) -> int:
    """Bytes of anonymous memory of a process, from its /proc/PID/status; 0 if it has no memory."""
    return int(status.get(b"RssAnon", b"0").split()[0]) << 10


@dataclass
class Texts:
    """The texts of a process as they were under the freeze."""

    pid: int
    status: Mapping[bytes, bytes]
    stat: procfs.Stat
    cwd: Folder | None = None
    root: Folder | None = None
    limits: bytes = b""
    timers: bytes = b""
    oom_score_adj: int = 0
    coredump_filter: int = 0
    autogroup_nice: int = 0
    label: str = ""
    shares_fs: bool = False
    """Whether its current and root directory and its umask are its parent's, too (CLONE_FS)."""
    environment: bytes = b""
    """The environment that its program was started with, as far as the program has not overwritten it."""

    @property
    def own_pid(self) -> int:
        """The PID in its own PID namespace."""
        return own_pid_of(self.status)


def grab(pid: int, *, zombie: bool = False) -> Texts:
    """Read the texts that change while a process runs; a zombie has few of them."""
    folder = f"/proc/{pid}"
    status, stat = procfs.status(procfs.read(f"{folder}/status")), procfs.stat(pid)
    if zombie:
        return Texts(pid, status, stat)
    return Texts(
        pid,
        status,
        stat,
        Folder.of(f"{folder}/cwd"),
        Folder.of(f"{folder}/root"),
        procfs.read(f"{folder}/limits"),
        procfs.read(f"{folder}/timers"),
        int(procfs.read(f"{folder}/oom_score_adj")),
        int(procfs.read(f"{folder}/coredump_filter"), 16),
        _autogroup_nice(folder),
        security_labels.of(pid),
        sharing.with_parent(pid, (stat.ppid,), sharing.KCMP_FS),
        procfs.read(f"{folder}/environ"),
    )


def _autogroup_nice(folder: str) -> int:
    """The nice value of a session's autogroup (sched(7)); also 0 if the kernel has no autogroups."""
    with suppress(FileNotFoundError):
        words = procfs.read(f"{folder}/autogroup").split()  # /autogroup-12 nice 5
        return int(words[-1]) if words else 0
    return 0

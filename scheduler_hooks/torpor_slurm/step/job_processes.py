"""Find the processes of a job's steps in /proc, by environment variables that a task has and its children inherit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torpor_slurm.allocation import ENV_FILE


def environments(job: Mapping[str, str]) -> Iterator[tuple[int, list[bytes]]]:
    """All processes of a job that Torpor supervises: PID, and the environment that each was executed with.

    Args:
        job: the environment of one of them.
    """
    own = f"{ENV_FILE}={job.get(ENV_FILE, '')}".encode()
    for entry in os.scandir("/proc"):
        with suppress(OSError):  # it has ended, or is another user's
            if entry.name.isdecimal() and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                words = Path(entry, "environ").read_bytes().split(b"\0")
                if own in words:
                    yield int(entry.name), words


def tasks(job: Mapping[str, str]) -> list[int]:
    """The PIDs of the tasks of all steps of a job; arguments as of `environments`."""
    return [pid for pid, words in environments(job) if task_variable(_own_pid(pid)) in words]


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to tasks, and ignore those that have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _own_pid(pid: int) -> int:
    """A process's PID in its own PID namespace (a restored job may have one)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return pid


def task_variable(pid: int) -> bytes:
    """The environment entry that tells a task's processes from others: the task has it, and its children inherit it."""
    return f"SLURM_TASK_PID={pid}".encode()


def ancestors() -> Iterator[int]:
    """The PIDs of this process, its parent, and so on."""
    pid = os.getpid()
    with suppress(OSError):
        while pid > 1:
            yield pid
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])

"""What a job's steps share in the job's directory: the current allocation, the step numbers, and a lock."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torpor_slurm.allocation import ENV_FILE

if TYPE_CHECKING:
    import socket

_CURRENT = frozenset({
    "SLURMD_NODENAME", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE", "SLURM_JOB_END_TIME", "SLURM_JOB_NODELIST",
    "SLURM_JOB_START_TIME", "SLURM_NODELIST", "SLURM_RESTART_COUNT", "SLURM_TOPOLOGY_ADDR", "SLURM_WORKING_CLUSTER",
})  # fmt: skip
"""Variables that differ from run to run of a job. A script that was woken still has those of the first run."""


_LONGEST = 60.0


def current(job: Mapping[str, str]) -> dict[str, str]:
    """The values that the variables of _CURRENT have in this run of the job."""
    try:
        words = shlex.split(Path(job.get(ENV_FILE, "")).read_text())
    except (OSError, ValueError):
        return {}
    found = dict(word.split("=", 1) for word in words if "=" in word)
    return {name: value for name, value in found.items() if name in _CURRENT}


def next_step(job: Mapping[str, str]) -> int:
    """Reserve a step number that no step of the job has had, in any run: output files may be named by it."""
    if (directory := _directory(job)) is None:
        return 0
    steps = directory / "steps"
    if not steps.exists():
        steps.mkdir(mode=0o700, exist_ok=True)
        _sync(directory)
    number = len(os.listdir(steps))  # none is ever removed
    while True:
        with suppress(FileExistsError):
            os.close(os.open(steps / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            _sync(steps)
            return number
        number += 1


@contextmanager
def locked(job: Mapping[str, str]) -> Iterator[None]:
    """Let one step of the job at a time choose processors and start its tasks.

    The tasks inherit the descriptor, and with it the lock, until execve() closes it: by then their environment shows
    what they hold. On a file system without locks, it is a name of a socket, which only one process can have: all steps
    of a job that Torpor starts are on one node.
    """
    if (directory := _directory(job)) is None:
        yield
        return
    fd = os.open(directory / "room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with ExitStack() as held:
        held.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:
            held.enter_context(_name_taken(fd))
        yield


def _name_taken(room: int) -> socket.socket:
    """A socket that is bound to an abstract name for a file, once no other process has it.

    After `_LONGEST` seconds it has no name: by then another user's program has it, not a step that starts its tasks.
    """
    import socket  # noqa: PLC0415  most file systems have locks

    status = os.fstat(room)
    named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        try:
            named.bind(f"\0torpor {os.geteuid()} {status.st_dev} {status.st_ino}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                time.sleep(0.01)
                continue
        break
    return named


def ask_once(name: str, job: Mapping[str, str], ask: Callable[[], str]) -> str:
    """Return what `ask` returns, but call it only once in a job: the answer is kept in the job's directory."""
    if (directory := _directory(job)) is None:
        return ask()
    with suppress(FileNotFoundError):
        return (directory / name).read_text()
    value = ask()
    # Not torpor.store.write_whole: this process imports little. After a crash the answer is only asked for again.
    temporary = directory / f".{name}.{os.urandom(8).hex()}"
    temporary.write_text(value)
    temporary.rename(directory / name)
    return value


def _directory(job: Mapping[str, str]) -> Path | None:
    """The job's directory. Every `torpor run` of a script but the first has a place below it (places.py)."""
    if ENV_FILE not in job:
        return None
    place = Path(job[ENV_FILE]).parent
    return place.parents[1] if place.parent.name == "then" else place


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

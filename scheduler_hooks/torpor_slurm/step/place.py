"""The job's directory, as its steps use it: the current allocation, numbers for steps, and a lock."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor_slurm.allocation import ENV_FILE

_CURRENT = frozenset({
    "SLURMD_NODENAME", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE", "SLURM_JOB_END_TIME", "SLURM_JOB_NODELIST",
    "SLURM_JOB_START_TIME", "SLURM_NODELIST", "SLURM_RESTART_COUNT", "SLURM_TOPOLOGY_ADDR", "SLURM_WORKING_CLUSTER",
})  # fmt: skip
"""What is another one in the next run: a script that was woken has the first run's."""


def current(job: Mapping[str, str]) -> dict[str, str]:
    """Those variables of the allocation that the job has now which are others in each run."""
    try:
        words = shlex.split(Path(job.get(ENV_FILE, "")).read_text())
    except (OSError, ValueError):
        return {}
    found = dict(word.split("=", 1) for word in words if "=" in word)
    return {name: value for name, value in found.items() if name in _CURRENT}


def next_step(job: Mapping[str, str]) -> int:
    """A number that no step of the job has had: two that write to a file of their own need two names."""
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
    """One step of the job at a time, until its tasks are there: they inherit the descriptor, and execve() closes it.

    Where files cannot be locked, nothing is.
    """
    if (directory := _directory(job)) is None:
        yield
        return
    fd = os.open(directory / "room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def kept(name: str, job: Mapping[str, str], ask: Callable[[], str]) -> str:
    """What does not change during a job, and is asked once in it."""
    if (directory := _directory(job)) is None:
        return ask()
    with suppress(FileNotFoundError):
        return (directory / name).read_text()
    value = ask()
    temporary = directory / f".{name}.{os.urandom(8).hex()}"
    temporary.write_text(value)
    temporary.rename(directory / name)
    return value


def _directory(job: Mapping[str, str]) -> Path | None:
    """The job's own, also for the second `torpor run` of its script, which has a place below it (places.py)."""
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

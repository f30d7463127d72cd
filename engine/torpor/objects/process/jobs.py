"""What runs under Torpor on this host: everything below a torpor-init, as far as this user may see it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from torpor import procfs
from torpor.errors import NotFound, TorporError
from torpor.objects.process import daemons, tree
from torpor.objects.process.texts import own_pid_of
from torpor.store import NAME, SnapshotInfo, Store, default_path
from torpor.util import durations
from torpor.util.job_names import job_name

How = Literal["run", "woken", "kernel", "slurm"]
_CLOCK_SET: Final = 10**9
"""By how many nanoseconds the wall clock may have been set since a job began: `began` is computed from the time since
the boot.
"""
WITH_VALUE: Final = frozenset(
    [
        *("--every", "--files", "--keep-last", "--mpi", "--name", "--on-refused", "--on-timeout", "--rollback-files"),
        *("--script", "--store", "--with-files"),
    ]
)
"""Options of `torpor run` that take the next word as their value. The job's command begins with the first word that is
neither an option nor such a value.
"""
_PID: Final = re.compile(r"\(PID (\d+)\)", re.ASCII)


@dataclass(frozen=True)
class RunningJob:
    """A job. PIDs are those that this process sees."""

    pid: int
    """Of the job's first process."""
    own_pid: int
    """The same, in the job's own PID namespace: its snapshots have it."""
    name: str
    uid: int
    began_ns: int
    """By the wall clock; of a job that was woken, when it began first."""
    how: How
    """Of `torpor run`, woken by `torpor restore`, Jupyter's, or Slurm's."""
    slurm_job: str
    store: str
    """Where it is saved: what its command or its environment says, else this user's store. Empty: not known."""
    store_is_sure: bool
    """Whether its command or its environment says so."""
    every: float | None
    """Seconds between two saves; None: not known."""
    given_name: str = ""
    """By `torpor run --name`."""

    def is_of(self, snapshot: SnapshotInfo) -> bool:
        """Whether a snapshot is of this job: saved on this host, since it began, with its PID."""
        found = _PID.search(snapshot.summary)
        return (
            bool(found and int(found[1]) == self.own_pid)
            and snapshot.host == os.uname().nodename
            and snapshot.created_ns >= self.began_ns - _CLOCK_SET
        )


def running() -> list[RunningJob]:
    """All jobs, in the order in which they began."""
    found = []
    for pid in procfs.pids():
        # It ends meanwhile, or belongs to another user.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError, TorporError):
            if daemons.is_init(pid) and not _stands_in(pid):
                found.append(_job(pid, tree.job_of(pid)))
    return sorted(found, key=lambda job: job.began_ns)


def find(name: str) -> RunningJob:
    """The job of a name: as it was given, or as its newest snapshot has it, or its program's or script's.

    Raises:
        NotFound: no job has this name, or several have.
    """
    found = running()
    own = zip(found, saves(found), strict=True)
    called = [job for job, saved in own if name and name_of(job, saved) == name]
    called = called or [job for job in found if name in (job.name, *job.name.split())]
    if len(called) == 1:
        return called[0]
    if called:
        shown = ", ".join(f"{job.pid} ({job.name})" for job in called)
        raise NotFound(f"{name!r} is the name of {len(called)} jobs: {shown}", advice="give the PID of one")
    raise NotFound(
        f"no job under Torpor has the name {name!r}", advice="`torpor ps` lists them; give the PID of any other process"
    )


def name_of(job: RunningJob, saved: Sequence[SnapshotInfo] | None) -> str:
    """The name that a job was given, or that its newest snapshot has. A kernel's snapshots have titles, not names."""
    if job.given_name or not saved or job.how == "kernel":
        return job.given_name
    return saved[-1].tags.get(NAME, "")


def saves(jobs: Sequence[RunningJob]) -> Iterator[list[SnapshotInfo] | None]:
    """Yield the snapshots of each job, oldest first; None if its store cannot be read, or may be another one."""
    listed: dict[str, list[SnapshotInfo] | None] = {"": None}
    for job in jobs:
        if job.store not in listed:
            listed[job.store] = None
            with suppress(TorporError):
                listed[job.store] = Store(job.store).snapshots()
        there = listed[job.store]
        own = [info for info in there or () if job.is_of(info)]
        yield own if own or (there is not None and job.store_is_sure) else None


def _stands_in(init: int) -> bool:
    """Whether a torpor-init stands for a process that a job refers to: a clone of the job's init above it."""
    above = procfs.stat(init).ppid
    return daemons.is_init(above) and procfs.command_line(above) == procfs.command_line(init)


def _job(init: int, root: int) -> RunningJob:
    status, stat = procfs.status(procfs.read(f"/proc/{root}/status")), procfs.stat(root)
    above = procfs.stat(init).ppid
    command = _command(procfs.command_line(above))
    environment = _environment(above if command else root)
    how: How = "woken"
    if command[:1] == ["run"]:
        how = "run"
    elif not command and "JPY_PARENT_PID" in environment:
        how = "kernel"
    store = _value(command, "--store")
    is_sure = bool(command or environment.get("TORPOR_STORE"))
    if store:
        store = os.path.join(os.readlink(f"/proc/{above}/cwd"), store)
    else:
        own = int(status[b"Uid"].split()[0]) == os.geteuid()
        store = environment.get("TORPOR_STORE") or (default_path() if own else "")
    slurm_job = environment.get("SLURM_JOB_ID", "") if how == "run" else ""
    directory = os.path.join(store, "slurm", f"{environment.get('SLURM_CLUSTER_NAME', 'cluster')}-{slurm_job}")
    if slurm_job and store and os.path.isdir(directory):  # else Torpor does not supervise it, as with salloc
        how, store = "slurm", directory
    every = None
    with suppress(ValueError):
        every = durations.seconds(_value(command, "--every"))
    return RunningJob(
        root,
        own_pid_of(status),
        job_name(stat.comm, procfs.command_line(root)),
        int(status[b"Uid"].split()[0]),
        daemons.began_ns(root),
        how,
        slurm_job if how == "slurm" else "",
        store,
        is_sure,
        every,
        _value(command, "--name"),
    )


def _command(words: Sequence[bytes]) -> list[str]:
    """The arguments of a torpor command from `run` or `restore` on, without the job's own; empty for other programs."""
    if not tree.is_torpor(words):
        return []
    own = [os.fsdecode(word) for word in words]
    own = own[next((k for k, word in enumerate(own) if word in ("run", "restore")), len(own)) :]
    if own[:1] != ["run"]:
        return own
    end = 1
    while end < len(own) and own[end].startswith("-") and own[end] != "--":
        end += 2 if own[end] in WITH_VALUE else 1
    return own[:end]


def _value(command: Sequence[str], option: str) -> str:
    """The value of an option in a command; empty if it is not there."""
    for word, after in pairwise([*command, ""]):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def _environment(pid: int) -> dict[str, str]:
    """The environment that a process began with; empty if it may not be read."""
    with suppress(OSError):
        pairs = os.fsdecode(procfs.read(f"/proc/{pid}/environ")).split("\0")
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    return {}

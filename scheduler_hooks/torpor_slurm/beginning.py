"""How a run of a job begins: which of its script's commands this is, and what earlier runs have left of it.

In a later run the store may be slow to come, stale or not there (another node has not mounted it). Then the run waits
for it, and in the end the job goes back to the queue: it does not fail, and it does not begin anew.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torpor import Snapshot
from torpor.errors import NotFound, StoreError, TorporError
from torpor.store import as_store_errors
from torpor_slurm import controller, own_requeue, places, rollback, srun_wrapper
from torpor_slurm.allocation import Allocation
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import Finished, JobDirectory, StoreMissing, seen_on
from torpor_slurm.messages import tell
from torpor_slurm.run_options import Options

FIRST_ANSWER = 300.0
"""Seconds that a run waits for an answer of the controller, at its begin and when a warned application has ended."""
STORE_PATIENCE = 60.0
"""Seconds that a later run waits for its store."""
_PASSING = frozenset({
    errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.EREMOTEIO,
})  # fmt: skip
"""Errors of file systems of a network that pass by themselves, or that another node does not have."""


T = TypeVar("T")


@dataclass
class Script:
    """The batch script of `torpor sbatch`, which is kept where every node finds it under one path."""

    name: str
    text: bytes


@dataclass
class Beginning:
    """What a command finds when a run of its job begins."""

    directory: JobDirectory
    """Its place in the job."""
    found: list[Snapshot] = field(default_factory=list)
    """The snapshots that may be woken, the newest first."""
    finished: Finished | None = None
    """How it has ended, if it has in an earlier run: it is not run again."""
    notes: list[str] = field(default_factory=list)
    """What the user is told once the application runs: a wake cuts off the output what was written before that."""
    lost: bool = False
    """Whether earlier runs of the job have left nothing here."""


def first_record(job: str, restarts: int) -> JobRecord:
    """Ask for a job's record, several times: a controller may answer late while many jobs start at once.

    Raises:
        SlurmError: it does not answer.
    """
    until = time.monotonic() + FIRST_ANSWER
    while True:
        try:
            return controller.job_record(job)
        except SlurmError:
            if time.monotonic() > until:
                raise
        except NotFound as error:
            tell(f"{error}: a warning saves the job, but nobody requeues it, and its time limit is not known")
            return JobRecord.unknown(restarts)
        time.sleep(controller.RETRY)


def begin(
    directory: JobDirectory, allocation: Allocation, record: JobRecord, command: Sequence[str], script: Script | None
) -> Beginning:
    """Begin a run of a command, and write what the application will need.

    Raises:
        Refused: another supervisor has this run of the job, or it leaves.
        StoreMissing, StoreError: there is no store, or it cannot be read or written.
    """
    restarts = allocation.restarts
    run = (restarts, allocation.node, record.start)
    lost = restarts > 0 and directory.last_run is None
    directory.arrive(*run)
    place = places.find(directory, restarts, command)
    here = Beginning(place.directory, notes=[place.note] if place.note else [], lost=lost)
    if finished := here.directory.finished:
        here.directory.pass_by(*run)
        here.finished = finished
        return here
    here.directory.write_environment(allocation.variables)
    here.directory.write_stand_in("srun", srun_wrapper.SCRIPT)
    here.directory.write_stand_in("scontrol", own_requeue.script(here.directory, allocation))
    if script is not None:
        directory.keep_script(script.name, script.text)
    here.found = here.directory.begin(*run, command, rollback.outputs())  # last: it can be done once
    if not record.requeue:
        ends = "a preemption saves it, but ends it"
        here.notes.append(f"this job may not be requeued (submit it with --requeue): {ends}")
    return here


def anew(here: Beginning, allocation: Allocation, options: Options) -> None:
    """Before an application starts: if an earlier run has started it already, say so, and cut off what it has written.

    Not if the application has ended by itself and requeued its job: what it has written is then the first part of its
    output.
    """
    before = here.directory.first_outputs(allocation.restarts)
    if here.lost:
        seen = ", ".join(seen_on(here.directory.base)) or "no node"
        restarts = f"Slurm has restarted job {here.directory.job} {allocation.restarts} times"
        nothing = f"no run of it has left anything in {here.directory.base}, a store that jobs have used on {seen}"
        here.notes.append(f"{restarts}, but {nothing}: it begins anew. Do all nodes share that store?")
        before = rollback.own_outputs(allocation.names)
    elif before is None:
        return
    elif not here.found:
        here.notes.append("the job was not saved before it was started again: it begins anew")
    for tail in rollback.grown(before) if options.rollback_files == "append-only" else ():
        try:
            aside = rollback.cut(tail, here.directory.cut, f"run{allocation.restarts}")
        except TorporError as error:  # better lines that come twice than a job that does not run
            here.notes.append(f"its output is not cut: {error}")
        else:
            here.notes.append(f"what earlier runs have written to {tail.path} is cut off, and kept in {aside}")


def patiently(step: Callable[[], T], allocation: Allocation, base: str | os.PathLike[str]) -> T:
    """Do what needs the store, again and again, until it answers or STORE_PATIENCE is over.

    In the first run of a job that is done only for an error that passes by itself.

    Raises:
        StoreMissing, StoreError: it does not; every OSError is one. And what `step` raises else.
    """
    until = time.monotonic() + STORE_PATIENCE
    while True:
        try:
            with as_store_errors(os.fspath(base), "what earlier runs have left cannot be read"):
                return step()
        except (StoreMissing, StoreError) as error:
            if time.monotonic() > until or (allocation.restarts == 0 and not _passes(error)):
                raise
        time.sleep(controller.RETRY)


def _passes(error: StoreMissing | StoreError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _PASSING


def put_back(job: str, error: StoreMissing | StoreError) -> None:
    """Put a job whose store cannot be used back into the queue, and tell the user.

    It is held there, until its user releases it, unless what is wrong passes by itself: it would come back for ever.

    Raises:
        StoreMissing, StoreError: `error`, if Slurm does not requeue the job.
    """
    passes = _passes(error)
    try:
        controller.requeue(job, hold=not passes)
    except SlurmError as refusal:
        again = f"then `scontrol requeue {job}`: what is saved is kept (Slurm does not requeue it now: {refusal})"
        error.advice = f"{error.advice}; {again}" if error.advice else again
        raise error from None
    way = "it is tried again" if passes else f"remove the cause, then `scontrol release {job}`"
    tell(f"{error}. The job is in the queue again, with all that is saved: {way}")

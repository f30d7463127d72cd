"""How a run of a job begins: it finds out which command of the script this is, and what earlier runs have left of it.

In a later run of the job, the store may be slow to appear, stale or missing (not mounted on this node). Then the run
waits for it. If the store does not come, the job is requeued: it neither fails nor begins anew.
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
"""Seconds that a run waits for the controller (slurmctld): at its begin, and after a warned application has ended."""
STORE_PATIENCE = 60.0
"""Seconds that a later run waits for its store."""
_PASSING = frozenset({
    errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.EREMOTEIO,
})  # fmt: skip
"""Errors of network file systems that pass by themselves, or that another node does not have."""


T = TypeVar("T")


@dataclass
class Script:
    """The batch script of `torpor sbatch`. It is stored under a path that is the same on every node."""

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
    """How the command finished, if it did so in an earlier run: then it is not run again."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user. They are printed once the application runs: a wake truncates the output files to where
    they were, and would remove what was printed before."""
    lost: bool = False
    """Whether Slurm has restarted the job, but no earlier run has left anything in this store."""


def first_record(job: str, restarts: int) -> JobRecord:
    """Ask the controller for a job's record, until it answers: it may be slow while many jobs start at once.

    Raises:
        SlurmError: the controller has not answered for FIRST_ANSWER seconds.
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
    """Begin a run of a command, and write the files that the application will need to the job directory.

    Raises:
        Refused: this run of the job has another supervisor, or has been saved already.
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
    here.found = here.directory.begin(*run, command, rollback.outputs())  # last: a second begin() would be refused
    if not record.requeue:
        ends = "a preemption saves it, but ends it"
        here.notes.append(f"this job may not be requeued (submit it with --requeue): {ends}")
    return here


def tell_finished(here: Beginning, command: Sequence[str]) -> None:
    """Tell the user that the command has finished in an earlier run."""
    assert here.finished
    name, again = os.path.basename(command[0]), f"remove {here.directory.path} to run it again"
    tell(f"{name} of job {here.directory.job} has finished already, with exit code {here.finished.code}: {again}")


def start_over(here: Beginning, allocation: Allocation, options: Options) -> None:
    """If an earlier run has started the application already, tell the user, and cut off the output of that run.

    To be called before the application starts. Nothing is cut off if the application ended by itself after it had
    requeued its job: then the earlier output is the first part of the whole.
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
        except TorporError as error:  # a job whose output has some lines twice is better than one that does not run
            here.notes.append(f"its output is not cut: {error}")
        else:
            here.notes.append(f"what earlier runs have written to {tail.path} is cut off, and kept in {aside}")


def patiently(step: Callable[[], T], allocation: Allocation, base: str | os.PathLike[str]) -> T:
    """Call `step`, which needs the store, again and again until the store can be used or STORE_PATIENCE is over.

    In the first run of a job, only errors that pass by themselves (_PASSING) are tried again.

    Raises:
        StoreMissing, StoreError: the store cannot be used; an OSError is raised as a StoreError.
        Exception: any other error of `step`, at once.
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
    """Requeue a job whose store cannot be used, and tell the user.

    The job is requeued in held state, unless the error passes by itself: otherwise it would start and fail for ever.

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

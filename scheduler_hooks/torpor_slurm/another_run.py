"""Requeue a job that was saved. The supervisor must not exit before the controller agrees: that would end the job."""

from __future__ import annotations

import time

from torpor.errors import TorporError
from torpor_slurm import controller
from torpor_slurm.controller import SlurmError
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.preemption_cause import is_cancelled


def request(directory: JobDirectory, restarts: int, deadline: float | None) -> None:
    """Requeue a job, and try again until a controller answers; but not if a later run has begun.

    Args:
        directory: the job's.
        restarts: how often Slurm had restarted the job when this run of it began.
        deadline: when its grace time ends, if one has begun.

    Raises:
        SlurmError: the controller refuses; the error says what the user can do.
    """
    while not directory.is_fenced(restarts):
        try:
            refusal = _ask(directory, restarts, deadline)
        except TorporError as error:
            directory.log(f"not requeued yet: {error}")
            time.sleep(controller.RETRY)
            continue
        if refusal is not None:
            raise refusal
        return


def _ask(directory: JobDirectory, restarts: int, deadline: float | None) -> SlurmError | None:
    """Requeue the job, unless it is requeued already or the user has cancelled it meanwhile.

    Returns:
        The error, if the controller refuses.

    Raises:
        TorporError: no controller answers.
    """
    record = controller.job_record(directory.job)
    if is_cancelled(record, deadline):
        directory.log("not requeued: it was cancelled meanwhile")
    elif record.restarts <= restarts:
        try:
            controller.requeue(directory.job)
        except SlurmError as refusal:
            if controller.job_record(directory.job).restarts <= restarts:
                way = f"`torpor restore latest --store {directory.path}` lets it go on anywhere"
                refusal.advice = f"the job is saved: {way}"
                return refusal
    return None

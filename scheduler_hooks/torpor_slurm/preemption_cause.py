"""Why was a job signalled? Slurm tells a job that it is to go, but not why; what the controller says of it does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torpor_slurm.controller import JobRecord

OWN_CHECKS = 120.0
"""Slurm looks for time limits every 30 s and sends `--signal` up to a minute early (sbatch(1)), seconds."""


class Cause(Enum):
    """Why a job is to go, or is not."""

    PREEMPTED = "preempted"
    """It is to leave for another job, and Slurm waits for it."""
    REQUEUED = "requeued"
    """It is in the queue again already; what still runs has until KILL comes."""
    TIME_LIMIT = "time limit"
    OTHER = "no cause of Slurm's"
    """The user's scancel, or a signal for the application: a requeue would raise the job from the dead."""


@dataclass(frozen=True)
class Finding:
    """The cause, and until when there is time (seconds of the epoch, None: not known)."""

    cause: Cause
    deadline: float | None = None


def is_cancelled(record: JobRecord, deadline: float | None) -> bool:
    """Whether the user, or an operator, has cancelled a job.

    While a job is being ended its record says COMPLETING, whatever ends it: the times tell. A preemption without a
    grace time ends it in the second in which it begins, one with a grace time at its deadline.

    Args:
        record: what the controller says of it now.
        deadline: the end of the grace time, if one is known to have begun.
    """
    if record.state != "COMPLETING" or record.reason == "TimeLimit":
        return record.state == "CANCELLED"
    if record.preempt is None or record.end is None:
        return True
    at_once = record.end - record.preempt <= 1
    return not at_once and (deadline is None or record.end < deadline - 1)


def find_cause(
    record: JobRecord, *, restarts: int, now: float, lead: float, terminated: bool, deadline: float | None = None
) -> Finding:
    """Judge a job that was just warned.

    Args:
        record: what the controller says of it now.
        restarts: how often it had been restarted when this run of it began.
        now: seconds of the epoch.
        lead: how long before its time limit it means to leave, seconds.
        terminated: the warning was SIGTERM, which Slurm sends at the end of a time limit too.
        deadline: the end of a grace time, if one is known to have begun.
    """
    if record.restarts > restarts:
        return Finding(Cause.REQUEUED)
    if is_cancelled(record, deadline):
        return Finding(Cause.OTHER)
    if record.state in ("RUNNING", "COMPLETING") and record.preempt is not None:
        return Finding(Cause.PREEMPTED, record.end)
    if record.state == "PREEMPTED":
        return Finding(Cause.PREEMPTED)
    if record.reason == "TimeLimit" or record.state == "TIMEOUT":
        return Finding(Cause.TIME_LIMIT)
    if record.state == "RUNNING" and record.limited and record.end is not None:
        left = record.end - now
        if left <= lead or (not terminated and left <= lead + OWN_CHECKS):
            return Finding(Cause.TIME_LIMIT, record.end)
    return Finding(Cause.OTHER)

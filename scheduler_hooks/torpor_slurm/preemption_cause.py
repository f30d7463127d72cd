"""Why Slurm signalled a job. The signal does not say; the job's record at the controller does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torpor_slurm.controller import JobRecord

OWN_CHECKS = 120.0
"""A warning that comes up to this many seconds earlier than asked for is still taken as that for the time limit: Slurm
checks time limits every 30 s, and may send `--signal` a minute early (sbatch(1))."""


COMPLETING = "COMPLETING"
_OVER = frozenset(
    {"CANCELLED", "COMPLETED", "DEADLINE", "BOOT_FAIL", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""The states of a job that has ended. A job that runs is not always in state RUNNING: before each warning, slurmctld
sends SIGCONT, and the job is SIGNALING meanwhile; the warning may arrive in that state (job_state_string() of Slurm
22.05)."""


class Cause(Enum):
    """Why a job was signalled."""

    PREEMPTED = "preempted"
    """Another job preempts this one. Slurm waits until the grace time is over."""
    REQUEUED = "requeued"
    """The job has been requeued already. Its processes run until Slurm sends SIGKILL."""
    REQUEUED_ITSELF = "requeued by itself"
    """The application has requeued its own job: it ends in its own way, and the next run begins anew."""
    TIME_LIMIT = "time limit"
    CANCELLED = "scancel"
    """The job must not be requeued: that would revive a job that its user has cancelled."""
    OTHER = "a signal that Slurm has no reason for"
    """The signal was meant for the application, or it is a warning that the job's record does not explain."""


@dataclass(frozen=True)
class Reaction:
    """What the supervisor does when a signal has this cause, or when the application ends while the cause holds."""

    leaves: bool
    """Whether the application is saved and killed. If not, the signal is forwarded to it, and it runs on or ends."""
    requeues: bool
    """Whether the job is requeued, even if its application has ended before it could be saved."""
    may_finish: bool
    """Whether an application that ends now counts as finished, unless Slurm has signalled it."""


REACTIONS = {
    Cause.PREEMPTED: Reaction(leaves=True, requeues=True, may_finish=True),
    Cause.REQUEUED: Reaction(leaves=True, requeues=False, may_finish=False),
    Cause.REQUEUED_ITSELF: Reaction(leaves=False, requeues=False, may_finish=False),
    Cause.TIME_LIMIT: Reaction(leaves=True, requeues=False, may_finish=True),  # --on-timeout=requeue: it is requeued
    Cause.CANCELLED: Reaction(leaves=False, requeues=False, may_finish=True),
    Cause.OTHER: Reaction(leaves=False, requeues=False, may_finish=True),
}
"""tests/unit/slurm/test_slurm_model.py tries every event in every state of a job."""


@dataclass(frozen=True)
class Finding:
    """A cause, and how long the job has (seconds since the epoch; None: not known)."""

    cause: Cause
    deadline: float | None = None


def is_running(record: JobRecord) -> bool:
    """Whether a job runs: Slurm neither has ended it nor has begun to end it."""
    return record.state != COMPLETING and record.state not in _OVER


def is_cancelled(record: JobRecord, deadline: float | None) -> bool:
    """Whether the user or an operator has cancelled a job.

    While a job ends, its record says COMPLETING, whatever the cause; only the times differ. A preemption without a
    grace time ends the job in the second in which it begins, and one with a grace time when that is over.

    Args:
        record: what the controller says of the job now.
        deadline: when the grace time ends, if one is known to have begun.
    """
    if record.state != COMPLETING or record.reason == "TimeLimit":
        return record.state == "CANCELLED"
    if record.preempt is None or record.end is None:
        return True
    at_once = record.end - record.preempt <= 1
    return not at_once and (deadline is None or record.end < deadline - 1)


def find_cause(
    record: JobRecord,
    *,
    restarts: int,
    now: float,
    lead: float,
    warned: bool,
    deadline: float | None = None,
    itself: bool = False,
) -> Finding:
    """Find out why a job was just signalled.

    Args:
        record: what the controller says of the job now.
        restarts: how often it had been restarted when this run of it began.
        now: seconds since the epoch.
        lead: how many seconds before its time limit the job should be saved.
        warned: the batch process itself was sent a signal, as `--signal=B:...` does before the time limit.
        deadline: when the grace time ends, if one is known to have begun.
        itself: the application has asked for a requeue of its own job.
    """
    if record.restarts > restarts:
        return Finding(Cause.REQUEUED_ITSELF if itself else Cause.REQUEUED)
    if is_cancelled(record, deadline):
        return Finding(Cause.CANCELLED)
    if record.preempt is not None and record.state not in _OVER:
        return Finding(Cause.PREEMPTED, record.end)
    if record.state == "PREEMPTED":
        return Finding(Cause.PREEMPTED)
    if record.reason == "TimeLimit" or record.state == "TIMEOUT":
        return Finding(Cause.TIME_LIMIT)
    early = OWN_CHECKS if warned else 0
    if is_running(record) and record.limited and record.end is not None and record.end - now <= lead + early:
        return Finding(Cause.TIME_LIMIT, record.end)
    return Finding(Cause.OTHER)

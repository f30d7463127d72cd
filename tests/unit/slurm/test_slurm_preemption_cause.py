"""Why Slurm signalled a job, from what the controller says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor_slurm.controller import JobRecord
from torpor_slurm.preemption_cause import Cause, Finding, find_cause, is_cancelled, is_running


def judge(line: str, *, left: float = 3600, lead: float = 20, warned: bool = False) -> Finding:
    record = JobRecord.parse(line)
    assert record.end is not None
    return find_cause(record, restarts=0, now=record.end - left, lead=lead, warned=warned)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("", "", Cause.OTHER),
        ("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00", Cause.PREEMPTED),
        ("JobState=RUNNING", "JobState=PREEMPTED", Cause.PREEMPTED),
        ("Restarts=0", "Restarts=1", Cause.REQUEUED),
        ("Reason=None", "Reason=TimeLimit", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=TIMEOUT", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=CANCELLED", Cause.CANCELLED),
    ],
)
def test_why_a_job_was_signalled(old: str, new: str, cause: Cause) -> None:
    assert judge(LINE.replace(old, new)).cause is cause


def test_a_job_that_was_requeued_after_its_preemption_is_not_requeued_twice() -> None:
    line = LINE.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00").replace("Restarts=0", "Restarts=1")
    assert judge(line).cause is Cause.REQUEUED


@pytest.mark.parametrize("state", ["SIGNALING", "STOPPED", "CONFIGURING", "RESIZING", "WHATEVER_COMES"])
def test_a_job_that_runs_is_not_always_said_to_be_running(state: str) -> None:
    """It is SIGNALING until the SIGCONT has arrived that Slurm sends before its warning, which may overtake."""
    line = LINE.replace("JobState=RUNNING", f"JobState={state}")
    assert is_running(JobRecord.parse(line))
    assert judge(line).cause is Cause.OTHER
    assert judge(line, left=19).cause is Cause.TIME_LIMIT
    preempted = line.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00")
    assert judge(preempted) == Finding(Cause.PREEMPTED, JobRecord.parse(line).end)


@pytest.mark.parametrize(
    "state", ["COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "NODE_FAIL", "TIMEOUT", "PREEMPTED"]
)
def test_a_job_that_is_over_or_ends_does_not_run(state: str) -> None:
    assert not is_running(JobRecord.parse(LINE.replace("JobState=RUNNING", f"JobState={state}")))


def test_a_signal_near_the_time_limit_is_its_warning() -> None:
    assert judge(LINE, left=19).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=100).cause is Cause.OTHER
    assert judge(LINE, left=100, warned=True).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=200, warned=True).cause is Cause.OTHER
    assert judge(LINE.replace("TimeLimit=01:00:00", "TimeLimit=UNLIMITED"), left=19).cause is Cause.OTHER


def test_what_ends_a_job_is_told_from_its_times() -> None:
    ending = LINE.replace("JobState=RUNNING", "JobState=COMPLETING")
    assert judge(ending).cause is Cause.CANCELLED
    preempted = ending.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:44:26")
    assert judge(preempted).cause is Cause.PREEMPTED, "PreemptMode=CANCEL without a grace time"
    in_grace = JobRecord.parse(ending.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:44:00"))
    assert in_grace.end is not None
    assert is_cancelled(in_grace, None)
    assert is_cancelled(in_grace, in_grace.end + 60), "scancel in the grace time"
    assert not is_cancelled(in_grace, in_grace.end), "its end"
    assert not is_cancelled(JobRecord.parse(ending.replace("Reason=None", "Reason=TimeLimit")), None)


def test_times_are_whole_seconds_when_a_cancel_is_told_from_them() -> None:
    record = replace(JobRecord.parse(LINE), state="COMPLETING", preempt=100.0, end=101.0)
    assert not is_cancelled(record, None), "a preemption without a grace time ends it within the second"
    assert is_cancelled(replace(record, end=102.0), None)
    assert not is_cancelled(replace(record, end=159.0), 160.0), "its end, to the second"
    assert is_cancelled(replace(record, end=158.0), 160.0)

"""Slurm, as far as it needs none: why a job was signalled, its allocation, its site, a controller that is silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE, environment
from torpor.errors import NotFound, Refused
from torpor.util.inherited import signals
from torpor_slurm import controller, site
from torpor_slurm.allocation import Allocation, is_supervised
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.home import JobHome
from torpor_slurm.supervisor import Options, Supervisor
from torpor_slurm.why import Answer, Cause, is_cancelled, why


def judge(line: str, *, left: float = 3600, lead: float = 20, terminated: bool = True) -> Answer:
    record = JobRecord.parse(line)
    assert record.end is not None
    return why(record, restarts=0, now=record.end - left, lead=lead, terminated=terminated)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("", "", Cause.OTHER),
        ("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00", Cause.PREEMPTED),
        ("JobState=RUNNING", "JobState=PREEMPTED", Cause.PREEMPTED),
        ("Restarts=0", "Restarts=1", Cause.REQUEUED),
        ("Reason=None", "Reason=TimeLimit", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=TIMEOUT", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=CANCELLED", Cause.OTHER),
    ],
)
def test_why_a_job_was_signalled(old: str, new: str, cause: Cause) -> None:
    assert judge(LINE.replace(old, new)).cause is cause


def test_a_job_that_was_requeued_after_its_preemption_is_not_requeued_twice() -> None:
    line = LINE.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00").replace("Restarts=0", "Restarts=1")
    assert judge(line).cause is Cause.REQUEUED


def test_a_signal_near_the_time_limit_is_its_warning() -> None:
    assert judge(LINE, left=19).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=100).cause is Cause.OTHER
    assert judge(LINE, left=100, terminated=False).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=200, terminated=False).cause is Cause.OTHER
    assert judge(LINE.replace("TimeLimit=01:00:00", "TimeLimit=UNLIMITED"), left=19).cause is Cause.OTHER


def test_what_ends_a_job_is_told_from_its_times() -> None:
    ending = LINE.replace("JobState=RUNNING", "JobState=COMPLETING")
    assert judge(ending).cause is Cause.OTHER, "scancel"
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


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error", LINE.replace("Restarts=0", "Restarts=x")])
def test_what_is_no_job_is_not_guessed_at(line: str) -> None:
    with pytest.raises(SlurmError):
        JobRecord.parse(line)


def test_a_command_that_is_not_there_or_fails_says_so() -> None:
    with pytest.raises(NotFound, match="there is no torpor-no-such-program here"):
        controller.call(["torpor-no-such-program"])
    with pytest.raises(SlurmError, match="sh -c failed: not today"):
        controller.call(["sh", "-c", "echo not today >&2; exit 3"])


def test_the_states_of_many_jobs_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\ncase $4 in --jobs=1,2) echo 1 RUNNING;; *) echo Invalid job id >&2; exit 1;; esac\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert controller.states(["1", "2"]) == {"1": "RUNNING"}
    assert controller.states(["2"]) == {}
    assert controller.states([]) == {}


def test_outside_of_a_job_there_is_no_allocation() -> None:
    assert Allocation.here({}) is None
    assert Allocation.here({"SLURM_JOB_ID": "12"}) is None, "salloc's shell on a login host"
    assert Allocation.here(environment(ENVIRONMENT="")) is None, "srun --pty bash"


def test_an_allocation_and_its_run() -> None:
    found = Allocation.here(environment(SLURM_RESTART_COUNT="3", HOME="/h"))
    assert found is not None
    assert (found.job, found.cluster, found.node, found.restarts, found.in_step) == ("12", "c", "n1", 3, False)
    assert "HOME" not in found.variables
    assert is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-12/env"}, found)
    assert not is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-11/env"}, found), "submitted from within another job"
    assert not is_supervised({}, found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, "2 nodes: a snapshot is of one node's processes"),
        ({"SLURM_JOB_GPUS": "0,1"}, "GPUs"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "it has 4 tasks"),
    ],
)
def test_what_cannot_be_kept_is_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Allocation.here(environment(**more))


def test_a_site_is_judged_in_words() -> None:
    config = {"ProctrackType": "proctrack/linuxproc", "PreemptMode": "REQUEUE", "KillWait": "30", "JobRequeue": "0"}
    partitions = {"low": {"GraceTime": "120", "PreemptMode": "REQUEUE"}, "top": {"PreemptMode": "OFF"}}
    found = {one.title: one for one in site.examine(config, partitions, True, 100 * 2**20)}
    assert found["ProctrackType"].verdict == "limited"
    assert found["JobRequeue"].verdict == "limited"
    assert "jobs of up to 7.3 GiB of memory" in found["partition low"].means
    suspending = site.examine({**config, "PreemptMode": "GANG,SUSPEND"}, {}, True, 1.0)
    assert [one.verdict for one in suspending if one.name == "preempt_mode"] == ["no"]


def test_a_store_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert site.measure(str(tmp_path / "store"), 16 << 20) > 0
    assert list((tmp_path / "store").iterdir()) == []


def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str) -> Supervisor:
    """One of a job on a cluster whose scontrol is made up."""
    path = tmp_path / "bin/scontrol"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $1 >>asked\n{scontrol}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    monkeypatch.setattr("torpor_slurm.supervisor.RETRY", 0.01)
    allocation = Allocation.here(environment())
    assert allocation is not None
    home = JobHome(tmp_path / "store", "12", "c")
    home.begin(0, "n1", 1.0)
    return Supervisor(["true"], allocation, home, Options(), signals())


SILENT_THRICE = "[ $(wc -l <asked) -gt 3 ] || { echo 'Unable to contact slurm controller' >&2; exit 1; }"


def test_a_run_begins_when_the_controller_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = supervisor(tmp_path, monkeypatch, f"{SILENT_THRICE}\necho '{LINE}'")
    assert tried._first_record().name == "job.sh"


def test_a_requeue_waits_for_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor(tmp_path, monkeypatch, f"{SILENT_THRICE}\n[ $1 = requeue ] || echo '{LINE}'")._requeue(None)
    assert (tmp_path / "asked").read_text().split() == ["show", "show", "show", "show", "requeue"]


def test_a_requeue_that_is_refused_says_where_the_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = f"[ $1 = show ] && exec echo '{LINE}'\necho 'Requested operation is disabled' >&2; exit 1"
    with pytest.raises(SlurmError, match=r"is disabled.*torpor restore latest --store"):
        supervisor(tmp_path, monkeypatch, refusing)._requeue(None)


def test_what_the_user_cancels_meanwhile_is_not_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = LINE.replace("JobState=RUNNING", "JobState=CANCELLED")
    supervisor(tmp_path, monkeypatch, f"[ $1 = show ] && echo '{cancelled}'")._requeue(None)
    assert "requeue" not in (tmp_path / "asked").read_text()

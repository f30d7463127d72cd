"""What Slurm's commands say is read, and nothing is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor.errors import NotFound
from torpor_slurm import controller
from torpor_slurm.controller import JobRecord, SlurmError


@pytest.mark.parametrize(
    "line",
    [
        "",
        "slurm_load_jobs error",
        LINE.replace("Restarts=0", "Restarts=x"),
        LINE.replace("EndTime=2026", "EndTime=99999"),
    ],
)
def test_what_is_no_job_is_not_guessed_at(line: str) -> None:
    with pytest.raises(SlurmError):
        JobRecord.parse(line)


def test_a_command_that_is_not_there_or_fails_says_so() -> None:
    with pytest.raises(NotFound, match="there is no torpor-no-such-program here"):
        controller.call(["torpor-no-such-program"])
    with pytest.raises(SlurmError, match="sh -c failed: not today"):
        controller.call(["sh", "-c", "echo not today >&2; exit 3"])


def test_a_host_without_a_cluster_is_told_in_words() -> None:
    said = "error: res_nsearch error: Unknown host\\nscontrol: fatal: Could not establish a configuration source"
    with pytest.raises(SlurmError, match=r"sh finds no configuration of a cluster here; set \$SLURM_CONF"):
        controller.call(["sh", "-c", f'printf "{said}" >&2; exit 1'])


def test_a_command_that_cannot_be_started_is_as_one_that_fails(tmp_path: Path) -> None:
    (tmp_path / "nonsense").touch(0o755)
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (("nonsense", "Exec format error"), ("loop", "Too many levels of symbolic links")):
        with pytest.raises(SlurmError, match=f"{name} cannot be started: {why}"):
            controller.call([str(tmp_path / name)])


def test_the_states_of_many_jobs_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\ncase $4 in --jobs=1,2) echo 1 RUNNING;; *) echo Invalid job id >&2; exit 1;; esac\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert controller.states(["1", "2"]) == {"1": "RUNNING"}
    assert controller.states(["2"]) == {}
    assert controller.states([]) == {}
    squeue.write_text("#!/bin/sh\necho 1 RUNNING; echo; echo nonsense; echo 2 a b\n")
    assert controller.states(["1", "2"]) == {"1": "RUNNING"}


def test_an_hour_that_comes_twice_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when summer time ends: scontrol is asked for seconds."""
    line = LINE.replace("EndTime=2026-11-23T06:44:26", "EndTime=$(date -d @1793493000 +$SLURM_TIME_FORMAT)")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "{line}"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert controller.job_record("1").end == 1793493000.0


def test_an_empty_value_takes_nothing_from_the_next_key() -> None:
    config = (
        "Configuration data as of 2026-11-29T21:40:45\nPreemptParameters       = \nPreemptMode             = REQUEUE\n"
        "PreemptType             = preempt/partition_prio\nProlog                  =\n"
        "KillWait                = 40 sec\n"
        "AccountingStorageExternalHost = (null)\n\nSlurmctld(primary) at ctl is UP\n"
    )
    found = controller.fields_of(config)
    assert (found["PreemptParameters"], found["PreemptMode"], found["Prolog"], found["KillWait"]) == (
        "", "REQUEUE", "", "40",
    )  # fmt: skip
    assert controller.fields_of("PartitionName=low AllowGroups= Default=NO QoS= GraceTime=7")["GraceTime"] == "7"
    assert controller.fields_of("PartitionName=low AllowGroups= Default=NO")["AllowGroups"] == ""


def test_a_jobs_name_may_hold_anything() -> None:
    for name in ("a b", "", "Restarts=9 JobState=FAILED Requeue=0", "x EndTime= = y"):
        assert JobRecord.parse(LINE.replace("JobName=job.sh", f"JobName={name}")) == replace(
            JobRecord.parse(LINE), name=name
        )


def test_how_long_a_job_has() -> None:
    assert controller.Notice.of({"GraceTime": "120"}, {"KillWait": "40"}).window == 160
    assert controller.Notice.of({"GraceTime": "NONE"}, {"KillWait": "(null)"}).window == 30
    assert controller.Notice.of({}, {}).window == 30

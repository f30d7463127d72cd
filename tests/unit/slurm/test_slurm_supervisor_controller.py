"""A supervisor whose controller is silent, refuses or says that the job was cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE, environment
from torpor.util.inherited import signals
from torpor_slurm import another_run, beginning
from torpor_slurm.allocation import Allocation
from torpor_slurm.controller import SlurmError
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options
from torpor_slurm.supervisor import Supervisor


def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str) -> Supervisor:
    """One of a job on a cluster whose scontrol is made up."""
    path = tmp_path / "bin/scontrol"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $1 >>asked\n{scontrol}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    monkeypatch.setattr("torpor_slurm.controller.RETRY", 0.01)
    allocation = Allocation.here(environment())
    assert allocation is not None
    directory = JobDirectory(tmp_path / "store", "12", "c")
    directory.begin(0, "n1", 1.0)
    return Supervisor(["true"], allocation, directory, Options(), signals())


SILENT_THRICE = "[ $(wc -l <asked) -gt 3 ] || { echo 'Unable to contact slurm controller' >&2; exit 1; }"


def test_a_run_begins_when_the_controller_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = supervisor(tmp_path, monkeypatch, f"{SILENT_THRICE}\necho '{LINE}'")
    assert beginning.first_record(tried.directory.job, 0).name == "job.sh"


def test_without_scontrol_a_run_begins_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a container: a warning saves the job."""
    tried = supervisor(tmp_path, monkeypatch, "")
    monkeypatch.setenv("PATH", "/nonesuch")
    found = beginning.first_record(tried.directory.job, 0)
    assert (found.state, found.requeue, found.limited, found.end) == ("RUNNING", True, False, None)
    assert "its time limit is not known" in capfd.readouterr().err


def requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str) -> None:
    another_run.request(supervisor(tmp_path, monkeypatch, scontrol).directory, 0, None)


def test_a_requeue_waits_for_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requeue(tmp_path, monkeypatch, f"{SILENT_THRICE}\n[ $1 = requeue ] || echo '{LINE}'")
    assert (tmp_path / "asked").read_text().split() == ["show", "show", "show", "show", "requeue"]


def test_a_requeue_that_is_refused_says_where_the_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = f"[ $1 = show ] && exec echo '{LINE}'\necho 'Requested operation is disabled' >&2; exit 1"
    with pytest.raises(SlurmError, match=r"is disabled.*torpor restore latest --store"):
        requeue(tmp_path, monkeypatch, refusing)


def test_what_the_user_cancels_meanwhile_is_not_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = LINE.replace("JobState=RUNNING", "JobState=CANCELLED")
    requeue(tmp_path, monkeypatch, f"[ $1 = show ] && echo '{cancelled}'")
    assert "requeue" not in (tmp_path / "asked").read_text()

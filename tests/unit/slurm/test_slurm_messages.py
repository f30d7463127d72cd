"""What the user of a job is told of failures: each reason once, until a save succeeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.errors import StoreError
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.messages import Failures

FULL, GONE = StoreError("the disk is full"), StoreError("it is not mounted")


def test_each_reason_is_told_once_and_all_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    failures = Failures(directory)
    for error in (FULL, FULL, GONE, FULL):
        failures.tell("not saved", error)
    told = ["torpor: not saved: the disk is full", "torpor: not saved: it is not mounted"]
    assert capsys.readouterr().err.splitlines() == told
    assert (directory.path / "log").read_text().count("not saved") == 4
    failures.over()
    failures.tell("not saved", FULL)
    assert capsys.readouterr().err.splitlines() == told[:1]


def test_what_was_only_logged_is_told_when_it_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = Failures(JobDirectory(tmp_path, "12", "c"))
    failures.tell("not saved", FULL, silent=True)
    assert capsys.readouterr().err == ""
    failures.tell("not saved", FULL)
    assert capsys.readouterr().err == "torpor: not saved: the disk is full\n"


def test_a_fault_of_ours_is_told_with_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("what")
    except KeyError as error:
        Failures(JobDirectory(tmp_path, "12", "c")).tell("not saved", error)
    assert "test_slurm_messages.py" in capsys.readouterr().err

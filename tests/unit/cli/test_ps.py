"""`torpor ps`: a row for each job, and what is not known."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Torpor
from torpor.cli import ps
from torpor.objects.process import jobs
from torpor.objects.process.jobs import RunningJob
from torpor.store import SnapshotInfo

NOW = 10**18
HOUR = 3600 * 10**9
JOB = RunningJob(4711, 12, "python3 train.py", 4_000_000_000, NOW - 3 * HOUR, "run", "", "/store", True, 3600.0)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW)


def saved(*ago_ns: int) -> list[SnapshotInfo]:
    return [SnapshotInfo(f"id-{ago}", "/store", created_ns=NOW - ago) for ago in ago_ns]


@pytest.mark.parametrize(
    ("job", "saves", "last", "due"),
    [
        (JOB, saved(2 * HOUR, HOUR // 2), "30 min ago", "in 30 min"),
        (JOB, saved(2 * HOUR), "2 h ago", "now"),
        (JOB, [], "never", "now"),
        (replace(JOB, began_ns=NOW - HOUR // 2), [], "never", "in 30 min"),
        (JOB, None, "?", ""),
        (replace(JOB, every=None), [], "never", ""),
        (replace(JOB, every=None), None, "?", ""),
    ],
)
def test_when_it_was_saved_and_will_be(job: RunningJob, saves: list[SnapshotInfo] | None, last: str, due: str) -> None:
    row = dict(zip(ps.HEADINGS, ps._row(job, saves), strict=True))
    assert (row["SAVED"], row["NEXT"]) == (last, due)


def test_a_user_without_a_name_is_a_number() -> None:
    assert ps._row(JOB, None)[:3] == ("4711", "4000000000", "run")
    assert ps._row(replace(JOB, how="slurm", slurm_job="12\x1b"), None)[2] == "Slurm job 12\\x1b"


def test_a_clock_that_was_set_back_shows_no_time_below_zero() -> None:
    assert ps._row(replace(JOB, began_ns=NOW + HOUR), [])[3] == "0 s"


def test_a_name_cannot_drive_a_terminal_or_break_the_table(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "running", lambda: [replace(JOB, name="a\x1b[2J\nb [red]")])
    monkeypatch.setattr(jobs, "saves", lambda _: [None])
    _, out, _ = run("ps")
    assert out.splitlines()[1].rstrip().endswith(r"a\x1b[2J\nb [red]")
    (told,) = json.loads(run("ps", "--json")[1])
    assert (told["snapshots"], told["saved_ns"], told["next_ns"]) == (None, None, None)


def test_no_jobs_are_an_answer(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "running", list)
    assert run("ps") == (0, "", "no jobs\n")
    assert run("ps", "--json") == (0, "[]\n", "")


def test_the_name_that_a_job_was_given_is_shown(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "running", lambda: [replace(JOB, given_name="tides")])
    monkeypatch.setattr(jobs, "saves", lambda _: [[]])
    assert "tides: python3 train.py" in run("ps")[1]
    assert json.loads(run("ps", "--json")[1])[0]["given_name"] == "tides"


def test_a_woken_job_has_the_name_of_its_newest_snapshot(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "running", lambda: [replace(JOB, how="woken")])
    monkeypatch.setattr(jobs, "saves", lambda _: [[replace(one, tags={"name": "tides"}) for one in saved(HOUR)]])
    assert "tides: python3 train.py" in run("ps")[1]

"""`torpor slurm status`: what is known of jobs, also when Slurm does not answer or does not know them any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.errors import NotFound
from torpor_slurm import controller, report
from torpor_slurm.controller import Notice, SlurmError
from torpor_slurm.job_directory import JobDirectory


class Cluster:
    """What the controller says."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.silent = False
        self.asked: list[str] = []

    def states_of(self, jobs: list[str]) -> dict[str, str]:
        """In the place of squeue."""
        if self.silent:
            raise SlurmError("the controller does not answer")
        return {job: self.states[job] for job in jobs if job in self.states}

    def notice(self, partition: str) -> Notice:
        """In the place of scontrol."""
        self.asked.append(partition)
        if self.silent:
            raise SlurmError("the controller does not answer")
        return Notice(60, 30)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(controller, "states", made.states_of)
    monkeypatch.setattr(controller, "notice", made.notice)
    return made


def job(base: Path, id: str, **state: object) -> JobDirectory:
    directory = JobDirectory(base, id, "cluster")
    directory.begin(0, "n1", 1.0)
    directory.update_state(name="job", phase="running", node="n1", run=0, partition="part", **state)
    return directory


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(None, "not saved yet"), (89.0, "yes: a save took 89.0 s of 90 s"), (90.0, "NO: a save took 90.0 s of 90 s")],
)
def test_whether_the_warning_is_long_enough(
    tmp_path: Path, cluster: Cluster, seconds: float | None, verdict: str
) -> None:
    job(tmp_path, "12", save_seconds=seconds)
    (row,) = report.status(str(tmp_path))
    assert row.in_words()[-1] == verdict
    assert row.as_json()["enough"] == (None if seconds is None else verdict.startswith("yes"))


def test_jobs_are_shown_while_slurm_is_silent(tmp_path: Path, cluster: Cluster) -> None:
    cluster.silent = True
    job(tmp_path, "12", save_seconds=3.0)
    (row,) = report.status(str(tmp_path))
    assert (row.slurm, row.window, row.enough) == ("", None, None)
    assert row.in_words()[-1] == "a save took 3.0 s"


def test_each_job_has_its_state_and_each_partition_is_asked_once(tmp_path: Path, cluster: Cluster) -> None:
    cluster.states = {"12": "RUNNING"}
    job(tmp_path, "12")
    job(tmp_path, "13", cause="preempted")
    rows = {row.job: row for row in report.status(str(tmp_path))}
    assert {id: row.in_words()[2] for id, row in rows.items()} == {"12": "RUNNING", "13": "not known any more"}
    assert cluster.asked == ["part"]
    assert rows["13"].in_words()[3] == "running, run 0 on n1", "a cause is told of jobs that left or ended"


def test_a_job_that_left_says_why(tmp_path: Path, cluster: Cluster) -> None:
    directory = job(tmp_path, "12", cause="preempted")
    directory.update_state(phase="left", run=2)
    (row,) = report.status(str(tmp_path), "12")
    assert row.in_words()[3] == "left: preempted, run 2 on n1"


def test_a_job_that_the_store_does_not_have(tmp_path: Path, cluster: Cluster) -> None:
    job(tmp_path, "12")
    with pytest.raises(NotFound, match="has no job 13"):
        report.status(str(tmp_path), "13")
    assert report.status(str(tmp_path / "empty")) == []

"""How a run begins: it starts the application, wakes it, or ends at once as an earlier run has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.slurm.supervisor_rig import SNAPSHOT, Application, Rig
from torpor.errors import NotFound, StoreError
from torpor.store import SnapshotInfo
from torpor_slurm import controller, lifeline, supervisor
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options


class Beginning:
    """A rig whose supervisor has not begun yet, in its first run or a later one."""

    def __init__(self, rig: Rig, base: Path) -> None:
        self.rig, self.base = rig, base
        self.started: list[tuple[Sequence[str], Mapping[str, str]]] = []
        self.woken: list[list[SnapshotInfo]] = []
        self.tied: list[object] = []
        rig.app.code = 3
        rig.monkeypatch.setattr(supervisor, "start", self._start)
        rig.monkeypatch.setattr(supervisor, "wake", self._wake)
        rig.monkeypatch.setattr(lifeline, "tie", self.tied.append)
        rig.monkeypatch.setattr(supervisor, "Sentinel", lambda *_: nullcontext(rig.sentinel))
        self.again(0)

    def again(self, restarts: int) -> None:
        """Be this run of the job."""
        self.rig.allocation = replace(self.rig.allocation, restarts=restarts)
        self.directory = self.rig.directory = JobDirectory(self.base, "12", "c")
        self.tried = self.rig.supervise(Options())

    def run(self) -> int:
        return self.tried.run()

    def _start(self, command: Sequence[str], *, environment: Mapping[str, str], signals: object) -> Application:
        assert signals is self.tried.given
        self.started.append((command, environment))
        return self.rig.app

    def _wake(self, found: list[SnapshotInfo], *_: object) -> Application:
        self.woken.append(found)
        return self.rig.app


@pytest.fixture
def beginning(rig: Rig, tmp_path: Path) -> Beginning:
    return Beginning(rig, tmp_path / "another")


def test_a_first_run_starts_the_application(beginning: Beginning, capfd: pytest.CaptureFixture[str]) -> None:
    beginning.rig.app.warnings = ("a warning",)
    assert beginning.run() == 3
    ((command, environment),) = beginning.started
    assert command == ["true"]
    assert environment["PATH"].split(":")[0] == str(beginning.directory.stand_ins)
    assert environment[ENV_FILE] == str(beginning.directory.environment_file)
    assert beginning.tied == [beginning.rig.app]
    assert beginning.directory.environment_file.exists()
    assert {path.name for path in beginning.directory.stand_ins.iterdir()} >= {"srun", "scontrol"}
    state = beginning.directory.state
    assert (state["run"], state["node"], state["name"]) == (
        0,
        beginning.rig.allocation.node,
        beginning.rig.record.name,
    )
    assert state["begin_seconds"] >= 0
    assert "run 0 started on" in beginning.rig.log
    told = capfd.readouterr().err
    assert "note: a warning" in told
    assert "begins anew" not in told and "may not be requeued" not in told


def test_srun_is_the_stand_in(beginning: Beginning) -> None:
    beginning.tried.command = ["srun", "-n1", "app"]
    beginning.run()
    assert beginning.started[0][0] == [str(beginning.directory.stand_ins / "srun"), "-n1", "app"]


def test_a_job_that_has_finished_ends_at_once(beginning: Beginning, capfd: pytest.CaptureFixture[str]) -> None:
    assert beginning.run() == 3
    beginning.again(1)
    assert beginning.run() == 3
    assert len(beginning.started) == 1
    assert "has finished already, with exit code 3" in capfd.readouterr().err


def test_the_same_command_again_in_one_run_is_run_again(beginning: Beginning) -> None:
    """As in a loop of the script."""
    for started in (1, 2):
        beginning.again(0)
        assert beginning.run() == 3
        assert len(beginning.started) == started
    for _ in range(2):
        beginning.again(1)
        assert beginning.run() == 3
    assert len(beginning.started) == 2, "both have finished"
    beginning.again(1)
    assert beginning.run() == 3
    assert len(beginning.started) == 3, "and this one is new"


def test_what_is_told_is_told_when_the_output_has_been_cut(
    beginning: Beginning, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wake cuts off what a run has written before it."""
    begin, info = JobDirectory.begin, SnapshotInfo(SNAPSHOT, "")

    def found(*arguments: Any) -> list[SnapshotInfo]:
        begin(*arguments)
        return [info]

    def woken(*_: object) -> Application:
        assert capfd.readouterr().err == ""
        return beginning.rig.app

    beginning.directory.begin(0, "n0", 1.0, ["true", "on", "n0"])
    beginning.rig.monkeypatch.setattr(JobDirectory, "begin", found)
    beginning.rig.monkeypatch.setattr(supervisor, "wake", woken)
    beginning.rig.say(requeue=False)
    beginning.again(1)
    assert beginning.run() == 3
    told = capfd.readouterr().err
    assert "`true on n0` goes on, as an earlier run of the job has begun it: this run's script has `true`" in told
    assert "this job may not be requeued" in told


def test_a_finish_that_cannot_be_passed_by_fails(beginning: Beginning) -> None:
    """The script's next command would take it for its own."""

    def fail(*_: object) -> None:
        raise StoreError("read-only")

    assert beginning.run() == 3
    beginning.again(2)
    beginning.rig.monkeypatch.setattr(JobDirectory, "pass_by", fail)
    with pytest.raises(StoreError, match="read-only; then `scontrol requeue 12`"):
        beginning.run()


def test_a_later_run_that_finds_nothing_says_so(beginning: Beginning, capfd: pytest.CaptureFixture[str]) -> None:
    beginning.again(2)
    with pytest.raises(NotFound, match="there is no store"):
        beginning.run()
    assert capfd.readouterr().err == ""
    beginning.base.mkdir()
    assert beginning.run() == 3
    assert len(beginning.started) == 1
    assert "Slurm has restarted job 12 2 times, but no run of it has left anything" in capfd.readouterr().err


def test_a_later_run_wakes_what_there_is(beginning: Beginning) -> None:
    begin, info = JobDirectory.begin, SnapshotInfo(SNAPSHOT, "")

    def found(*arguments: Any) -> list[SnapshotInfo]:
        begin(*arguments)
        return [info]

    beginning.rig.monkeypatch.setattr(JobDirectory, "begin", found)
    assert beginning.run() == 3
    assert (beginning.woken, beginning.started) == ([[info]], [])
    assert beginning.tied == [beginning.rig.app]
    assert "run 0 resumed on" in beginning.rig.log


def test_a_store_that_fails_at_the_begin_says_how_to_go_on(beginning: Beginning) -> None:
    def full(*_: object) -> None:
        raise StoreError("full", advice="make room")

    beginning.rig.monkeypatch.setattr(JobDirectory, "write_environment", full)
    with pytest.raises(StoreError) as raised:
        beginning.run()
    assert raised.value.advice == "make room; then `scontrol requeue 12`: what is saved is kept"
    assert beginning.started == []


def test_a_job_that_may_not_be_requeued(beginning: Beginning, capfd: pytest.CaptureFixture[str]) -> None:
    beginning.rig.say(requeue=False)
    assert beginning.run() == 3
    assert "this job may not be requeued (submit it with --requeue)" in capfd.readouterr().err


def test_a_controller_that_answers_late(beginning: Beginning) -> None:
    beginning.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    beginning.rig.late = [None, None]
    assert beginning.run() == 3
    assert beginning.rig.late == []


def test_a_controller_that_never_answers(beginning: Beginning) -> None:
    beginning.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    beginning.rig.monkeypatch.setattr(supervisor, "FIRST_ANSWER", 0.05)
    beginning.rig.silent = True
    with pytest.raises(SlurmError, match="Unable to contact"):
        beginning.run()
    assert beginning.started == []


def test_a_job_that_the_controller_does_not_know_runs(beginning: Beginning, capfd: pytest.CaptureFixture[str]) -> None:
    def unknown(_: str) -> JobRecord:
        raise NotFound("no job 12")

    beginning.rig.monkeypatch.setattr(controller, "job_record", unknown)
    assert beginning.run() == 3
    assert "no job 12: a warning saves the job, but nobody requeues it" in capfd.readouterr().err
    assert beginning.directory.finished
    assert beginning.directory.finished.code == 3

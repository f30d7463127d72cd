"""How a run begins: it starts the application, wakes it, or ends at once as an earlier run has ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.slurm.supervisor_rig import SNAPSHOT, Application, Rig
from torpor.errors import NotFound, StoreError
from torpor.store import SnapshotInfo
from torpor_slurm import beginning, controller, lifeline, supervisor
from torpor_slurm import rollback as rollback_of
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.beginning import Beginning, Script
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options


class Begun:
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

    def again(self, restarts: int, options: Options = Options()) -> None:  # noqa: B008
        """Be this run of the job."""
        self.rig.allocation = replace(self.rig.allocation, restarts=restarts)
        self.directory = self.rig.directory = JobDirectory(self.base, "12", "c")
        self.tried = self.rig.supervise(options)

    def run(self) -> int:
        return self.tried.run()

    def _start(self, command: Sequence[str], *, environment: Mapping[str, str], signals: object) -> Application:
        assert signals is self.tried.given
        self.started.append((command, environment))
        return self.rig.app

    def _wake(self, here: Beginning, *_: object) -> Application:
        self.woken.append(here.found)
        return self.rig.app


@pytest.fixture
def begun(rig: Rig, tmp_path: Path) -> Begun:
    return Begun(rig, tmp_path / "another")


def test_a_first_run_starts_the_application(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    begun.rig.app.warnings = ("a warning",)
    assert begun.run() == 3
    ((command, environment),) = begun.started
    assert command == ["true"]
    assert environment["PATH"].split(":")[0] == str(begun.directory.stand_ins)
    assert environment[ENV_FILE] == str(begun.directory.environment_file)
    assert begun.tied == [begun.rig.app]
    assert begun.directory.environment_file.exists()
    assert {path.name for path in begun.directory.stand_ins.iterdir()} >= {"srun", "scontrol"}
    state = begun.directory.state
    assert (state["run"], state["node"], state["name"]) == (
        0,
        begun.rig.allocation.node,
        begun.rig.record.name,
    )
    assert state["begin_seconds"] >= 0
    assert "run 0 started on" in begun.rig.log
    told = capfd.readouterr().err
    assert "note: a warning" in told
    assert "begins anew" not in told and "may not be requeued" not in told


def test_srun_is_the_stand_in(begun: Begun) -> None:
    begun.tried.command = ["srun", "-n1", "app"]
    begun.run()
    assert begun.started[0][0] == [str(begun.directory.stand_ins / "srun"), "-n1", "app"]


def test_a_job_that_has_finished_ends_at_once(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    assert begun.run() == 3
    begun.again(1)
    assert begun.run() == 3
    assert len(begun.started) == 1
    assert "has finished already, with exit code 3" in capfd.readouterr().err


def test_the_same_command_again_in_one_run_is_run_again(begun: Begun) -> None:
    """As in a loop of the script."""
    for started in (1, 2):
        begun.again(0)
        assert begun.run() == 3
        assert len(begun.started) == started
    for _ in range(2):
        begun.again(1)
        assert begun.run() == 3
    assert len(begun.started) == 2, "both have finished"
    begun.again(1)
    assert begun.run() == 3
    assert len(begun.started) == 3, "and this one is new"


def test_what_is_told_is_told_when_the_output_has_been_cut(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    """A wake cuts off what a run has written before it."""
    begin, info = JobDirectory.begin, SnapshotInfo(SNAPSHOT, "")

    def found(*arguments: Any) -> list[SnapshotInfo]:
        begin(*arguments)
        return [info]

    def woken(*_: object) -> Application:
        assert capfd.readouterr().err == ""
        return begun.rig.app

    begun.directory.begin(0, "n0", 1.0, ["true", "on", "n0"])
    begun.rig.monkeypatch.setattr(JobDirectory, "begin", found)
    begun.rig.monkeypatch.setattr(supervisor, "wake", woken)
    begun.rig.say(requeue=False)
    begun.again(1)
    assert begun.run() == 3
    told = capfd.readouterr().err
    assert "`true on n0` goes on, as an earlier run of the job has begun it: this run's script has `true`" in told
    assert "this job may not be requeued" in told


def test_a_later_run_that_finds_nothing_says_so(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    begun.base.mkdir()
    begun.again(2)
    assert begun.run() == 3
    assert len(begun.started) == 1
    told = capfd.readouterr().err
    assert "Slurm has restarted job 12 2 times, but no run of it has left anything in" in told
    assert "a store that jobs have used on n1: it begins anew" in told


@pytest.mark.parametrize(
    ("error", "verb"),
    [(OSError(errno.ESTALE, "Stale file handle"), "requeue"), (OSError(errno.ENOSPC, "full"), "requeuehold")],
)
@pytest.mark.parametrize("place", ["arrive", "begin", "write_stand_in"])
def test_a_store_that_cannot_be_used_puts_a_later_run_back_into_the_queue(
    begun: Begun, error: OSError, verb: str, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise error

    assert begun.run() == 3
    (begun.directory.path / "finished").unlink()
    begun.again(1)
    begun.rig.monkeypatch.setattr(JobDirectory, place, fails)
    begun.rig.monkeypatch.setattr(beginning, "STORE_PATIENCE", 0.02)
    begun.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    assert begun.run() == 0
    assert (begun.rig.verbs, len(begun.started)) == ([verb], 1)
    assert "The job is in the queue again, with all that is saved" in capfd.readouterr().err


def test_a_store_that_is_not_there_puts_a_later_run_back_into_the_queue(
    begun: Begun, capfd: pytest.CaptureFixture[str]
) -> None:
    begun.again(2)
    begun.rig.monkeypatch.setattr(beginning, "STORE_PATIENCE", 0.0)
    begun.tried.embedded = Script("job.sh", b"#!/bin/sh")
    assert begun.run() == 0
    assert (begun.rig.verbs, begun.started, begun.base.exists()) == (["requeuehold"], [], False)
    told = capfd.readouterr().err
    assert "there is no store" in told
    assert "remove the cause, then `scontrol release 12`" in told


def test_a_store_that_comes_late_is_waited_for(begun: Begun) -> None:
    arrive, late = JobDirectory.arrive, [OSError(errno.ESTALE, "Stale file handle"), StoreError("not yet")]

    def arrives(*arguments: Any) -> None:
        if late:
            raise late.pop()
        arrive(*arguments)

    begun.directory.arrive(0, "n1", 1.0)
    begun.again(1)
    begun.rig.monkeypatch.setattr(JobDirectory, "arrive", arrives)
    begun.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    assert begun.run() == 3
    assert (late, len(begun.started), begun.rig.verbs) == ([], 1, [])


def test_where_slurm_does_not_requeue_the_error_says_how_to_go_on(begun: Begun) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise SlurmError("Requested operation is disabled")

    begun.again(1)
    begun.rig.monkeypatch.setattr(beginning, "STORE_PATIENCE", 0.0)
    begun.rig.monkeypatch.setattr(controller, "requeue", refuses)
    with pytest.raises(NotFound, match=r"there is no store .* then `scontrol requeue 12`: what is saved is kept"):
        begun.run()


def test_the_script_is_kept_for_all_nodes(begun: Begun) -> None:
    begun.tried.embedded = Script("job.sh", b"#!/bin/sh")
    assert begun.run() == 3
    assert begun.directory.script("job.sh").read_bytes() == b"#!/bin/sh"


@pytest.mark.parametrize(
    ("ends", "cut"), [("killed", True), ("requeued by itself", False), ("the mark alone", False), ("refused", True)]
)
@pytest.mark.parametrize("rollback", ["append-only", "none"])
def test_what_begins_anew_writes_no_line_twice(
    begun: Begun, tmp_path: Path, capfd: pytest.CaptureFixture[str], ends: str, cut: bool, rollback: Any
) -> None:
    """Unless it wants to: what has requeued its own job goes on in its own way."""
    out = tmp_path / "out"
    out.write_text("of another job\n")
    fd = os.open(out, os.O_WRONLY | os.O_APPEND)
    begun.rig.monkeypatch.setattr(rollback_of, "_FDS", (fd,))
    begun.directory.begin(0, "n1", 1.0, ["true"], rollback_of.outputs())
    os.write(fd, b"step 0\n")
    if ends == "requeued by itself":
        begun.directory.own_end(0)
    elif ends == "the mark alone":
        begun.directory.own_requeue.touch()
    elif ends == "refused":
        begun.rig.monkeypatch.setattr(supervisor, "wake", lambda *_: None)
        begun.rig.monkeypatch.setattr(JobDirectory, "_candidates", lambda _: [SnapshotInfo(SNAPSHOT, "")])
    begun.again(1, Options(rollback_files=rollback))
    assert begun.run() == 3
    os.close(fd)
    kept = "of another job\n" if cut and rollback == "append-only" else "of another job\nstep 0\n"
    assert out.read_text() == kept
    told = capfd.readouterr().err
    assert ("the job was not saved before it was started again: it begins anew" in told) == (ends == "killed")
    assert ("is cut off, and kept in" in told) == (cut and rollback == "append-only")
    if "is cut off" in told:
        assert [path.read_text() for path in begun.directory.cut.iterdir()] == ["step 0\n"]


@pytest.mark.parametrize(("name", "left"), [("slurm-12.out", ""), ("12_0_log.out", ""), ("all-112.out", "step 0\n")])
def test_what_begins_anew_in_another_store_cuts_the_output_that_is_its_own(
    begun: Begun, tmp_path: Path, name: str, left: str
) -> None:
    out = tmp_path / name
    out.write_text("step 0\n")
    begun.base.mkdir()
    begun.again(1)
    with open(out, "a") as file:
        begun.rig.monkeypatch.setattr(rollback_of, "_FDS", (file.fileno(),))
        assert begun.run() == 3
    assert out.read_text() == left


def test_a_later_run_wakes_what_there_is(begun: Begun) -> None:
    begin, info = JobDirectory.begin, SnapshotInfo(SNAPSHOT, "")

    def found(*arguments: Any) -> list[SnapshotInfo]:
        begin(*arguments)
        return [info]

    begun.rig.monkeypatch.setattr(JobDirectory, "begin", found)
    assert begun.run() == 3
    assert (begun.woken, begun.started) == ([[info]], [])
    assert begun.tied == [begun.rig.app]
    assert "run 0 resumed on" in begun.rig.log


def test_a_store_that_fails_in_the_first_run_fails_it(begun: Begun) -> None:
    def full(*_: object) -> None:
        raise StoreError("full", advice="make room")

    begun.rig.monkeypatch.setattr(JobDirectory, "write_environment", full)
    with pytest.raises(StoreError, match="full; make room"):
        begun.run()
    assert (begun.started, begun.rig.verbs) == ([], [])


def test_a_job_that_may_not_be_requeued(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    begun.rig.say(requeue=False)
    assert begun.run() == 3
    assert "this job may not be requeued (submit it with --requeue)" in capfd.readouterr().err


def test_a_controller_that_answers_late(begun: Begun) -> None:
    begun.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    begun.rig.late = [None, None]
    assert begun.run() == 3
    assert begun.rig.late == []


def test_a_controller_that_never_answers(begun: Begun) -> None:
    begun.rig.monkeypatch.setattr(controller, "RETRY", 0.01)
    begun.rig.monkeypatch.setattr(beginning, "FIRST_ANSWER", 0.05)
    begun.rig.silent = True
    with pytest.raises(SlurmError, match="Unable to contact"):
        begun.run()
    assert begun.started == []


def test_a_job_that_the_controller_does_not_know_runs(begun: Begun, capfd: pytest.CaptureFixture[str]) -> None:
    def unknown(_: str) -> JobRecord:
        raise NotFound("no job 12")

    begun.rig.monkeypatch.setattr(controller, "job_record", unknown)
    assert begun.run() == 3
    assert "no job 12: a warning saves the job, but nobody requeues it" in capfd.readouterr().err
    assert begun.directory.finished
    assert begun.directory.finished.code == 3

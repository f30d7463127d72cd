"""When a Slurm job is warned: what its supervisor saves, requeues and hands on."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

import torpor
from tests.unit.slurm.supervisor_rig import PATIENCE, Rig
from torpor.errors import CheckpointFailed, NotFound
from torpor.store import SnapshotInfo
from torpor_slurm import controller
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import RUN_TAG, JobDirectory
from torpor_slurm.preemption_cause import Cause, Finding
from torpor_slurm.supervisor import LEFT_AT_TIME_LIMIT, Options


def test_a_preempted_job_is_saved_ended_and_requeued_once(rig: Rig) -> None:
    rig.preempt()
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard, rig.app.waited) == (["kill"], ["12"], [], True)
    assert rig.tags == [{RUN_TAG: "0", "slurm-job": "12"}]
    state = rig.directory.state
    assert (state["phase"], state["cause"]) == ("left", "preempted")
    assert (state["bytes"], state["pause_seconds"]) == (1 << 20, 0.005)
    assert 0 <= state["save_seconds"] <= state["leave_seconds"] < PATIENCE
    assert rig.pruned == 1
    assert rig.directory.finished is None, "it is not done"


def test_what_a_wake_will_not_bring_back_is_told_once(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.notices = ("a connection is lost",)
    for _ in range(2):
        assert rig.tried._save("run")
    rig.notices = ("a connection is lost", "another one is")
    assert rig.tried._save("run")
    told = [line for line in capfd.readouterr().err.splitlines() if "saved, but" in line]
    assert told == ["torpor: saved, but a connection is lost", "torpor: saved, but another one is"]


def test_a_job_that_is_in_the_queue_already_is_not_requeued(rig: Rig) -> None:
    rig.say(restarts=1)
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], [])


@pytest.mark.parametrize(("choice", "code", "requeued"), [("stop", LEFT_AT_TIME_LIMIT, []), ("requeue", 0, ["12"])])
def test_at_its_time_limit_a_job_is_saved(
    rig: Rig, choice: Any, code: int, requeued: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    rig.supervise(Options(on_timeout=choice))
    rig.say(reason="TimeLimit")
    rig.warn()
    assert rig.watch() == code
    assert (rig.saves, rig.requeued) == (["kill"], requeued)
    assert ("scontrol requeue 12" in capfd.readouterr().err) == (choice == "stop")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_not_slurms_is_the_applications(rig: Rig, number: int) -> None:
    """It may end it; a requeue would raise it from the dead."""
    rig.app.end_after = 5
    rig.warn(number)
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard) == ([], [], [number])


def test_what_no_site_sends_as_a_warning_is_handed_on_unasked(rig: Rig) -> None:
    rig.silent = True
    rig.app.end_after = 5
    rig.warn(signal.SIGWINCH)
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard) == ([], [signal.SIGWINCH])


def test_what_the_application_ignores_by_its_start_is_not_handed_on(rig: Rig) -> None:
    rig.supervise(Options(), ignored=frozenset({signal.SIGHUP}))
    rig.app.end_after = 5
    rig.warn(signal.SIGHUP)
    assert rig.watch() == 0
    assert rig.app.heard == []


def test_while_the_controller_is_silent_a_warned_job_is_saved_and_goes_on(rig: Rig) -> None:
    rig.silent = True
    rig.app.end_after = 5
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard) == (["run"], [], [])


def test_a_save_that_fails_is_tried_again_and_the_application_is_warned(rig: Rig) -> None:
    rig.supervise(Options(every=0.01))
    rig.preempt()
    rig.fail = [CheckpointFailed("the disk is full"), CheckpointFailed("still"), None]
    rig.warn()
    began = time.monotonic()
    assert rig.watch() == 0
    assert time.monotonic() - began >= 2 * 0.05, "it waits between two tries"
    assert (rig.saves, rig.requeued) == (["kill"] * 3, ["12"]), "to leave is what counts now"
    assert rig.app.heard == [signal.SIGTERM], "once: it was warned once"


def test_a_fault_of_ours_in_a_save_does_not_cost_the_job(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.preempt()
    rig.fail = [RuntimeError("a fault"), None]
    rig.warn()
    assert rig.watch() == 0
    assert rig.saves == ["kill", "kill"]
    assert "RuntimeError: a fault" in capfd.readouterr().err
    assert "RuntimeError: a fault" in rig.log


def test_what_the_user_cancels_while_it_is_saved_is_not_requeued(rig: Rig) -> None:
    rig.preempt()
    rig.warn()
    kept = rig._checkpoint

    def cancelled(*arguments: Any, **named: Any) -> SnapshotInfo:
        rig.say(state="CANCELLED")
        return kept(*arguments, **named)

    rig.monkeypatch.setattr(torpor, "checkpoint", cancelled)
    assert rig.watch() == 0
    assert rig.requeued == []


def test_a_silent_controller_is_asked_again_for_another_run(rig: Rig) -> None:
    """To leave without one would end the job."""
    rig.preempt()
    asked = []

    def answers(job: str) -> JobRecord:
        asked.append(job)
        if 1 < len(asked) < 4:
            raise SlurmError("Unable to contact slurm controller")
        return rig.record

    rig.monkeypatch.setattr(controller, "job_record", answers)
    rig.warn()
    assert rig.watch() == 0
    assert (rig.requeued, len(asked)) == (["12"], 4)


def test_the_end_of_a_grace_time_that_is_known_is_no_cancel(rig: Rig) -> None:
    end = time.time()
    rig.tried.leaving = Finding(Cause.PREEMPTED, end)
    rig.tried.retry_at = time.monotonic() + PATIENCE
    rig.say(state="COMPLETING", preempt=end - 60, end=end)
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard) == (["kill"], ["12"], [])


def test_a_requeue_that_is_refused_since_somebody_else_was_first(rig: Rig) -> None:
    def refuses(job: str) -> None:
        rig.say(restarts=1)
        raise SlurmError("Job is pending")

    rig.monkeypatch.setattr(controller, "requeue", refuses)
    rig.preempt()
    rig.warn()
    assert rig.watch() == 0
    assert rig.saves == ["kill"]


def test_one_that_ends_while_it_is_saved_is_no_failed_save(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.fail = [NotFound("there is no process 9")]
    assert not rig.tried._save("run")
    assert "not saved" not in capfd.readouterr().err


def test_a_run_that_is_shut_out_meanwhile_asks_for_nothing(rig: Rig) -> None:
    rig.silent = True
    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    rig.tried._requeue(None)
    assert rig.requeued == []

"""The sentinel step and the time limit: when a job leaves though nobody sent it a signal."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from tests.unit.slurm.supervisor_rig import Rig
from torpor import processes
from torpor.errors import CheckpointFailed
from torpor_slurm import supervisor
from torpor_slurm.step import job_processes
from torpor_slurm.supervisor import LEFT_AT_TIME_LIMIT


@pytest.mark.parametrize("requeued", [False, True])
def test_a_grace_time_that_began_before_anybody_listened(rig: Rig, requeued: bool) -> None:
    rig.preempt()
    rig.say(restarts=int(requeued))
    rig.sentinel.news = ["has_started"]
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], [] if requeued else ["12"])


def test_a_sentinel_that_listens_or_ends_without_a_cause_changes_nothing(rig: Rig) -> None:
    rig.sentinel.news = ["has_started", "ended"]
    rig.app.end_after = 6
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard, rig.sentinel.news) == ([], [], [])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("catches", [False, True])
def test_a_signal_for_the_steps_is_handed_on_to_their_tasks(rig: Rig, number: signal.Signals, catches: bool) -> None:
    """`scancel --signal=USR1`: only steps hear it, and of those Slurm knows but the sentinel."""
    sent: list[tuple[list[int], int]] = []
    rig.monkeypatch.setattr(
        job_processes, "tasks", lambda job: [7, 8] if job["TORPOR_ENV_FILE"].endswith("c-12/env") else []
    )
    rig.monkeypatch.setattr(job_processes, "send_signal", lambda pids, number: sent.append((pids, number)))
    rig.app.catches = {number} if catches else set()
    rig.sentinel.news, rig.sentinel.signal = ["ended"], number
    rig.app.end_after = 3
    assert rig.watch() == 0
    assert (sent, rig.saves, rig.app.heard) == ([([7, 8], number)], [] if catches else ["run"], [])


def test_what_warned_of_a_preemption_is_not_for_the_tasks(rig: Rig) -> None:
    rig.monkeypatch.setattr(job_processes, "tasks", lambda _: pytest.fail("nobody is to be signalled"))
    rig.preempt()
    rig.sentinel.news, rig.sentinel.signal = ["ended"], signal.SIGTERM
    assert rig.watch() == 0
    assert rig.saves == ["kill"]


def test_a_time_limit_that_is_near_is_nothing_that_came_too_early(rig: Rig) -> None:
    rig.say(reason="TimeLimit")
    rig.app.end_after = 3
    rig.sentinel.news = ["has_started"]
    assert rig.watch() == 0
    assert rig.saves == []


def test_a_sentinel_that_is_told_to_go(rig: Rig) -> None:
    rig.preempt()
    rig.sentinel.news = ["ended"]
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], ["12"])


def near(rig: Rig, left: float) -> None:
    rig.say(start=time.time() - 3600, end=time.time() + left)
    rig.tried.record = rig.record


def test_a_job_leaves_before_its_time_limit(rig: Rig) -> None:
    near(rig, supervisor.MIN_LEAD_SECONDS - 1)
    assert rig.watch() == LEFT_AT_TIME_LIMIT
    assert (rig.saves, rig.directory.state["cause"]) == (["kill"], "time limit")


def test_at_its_limit_a_save_that_fails_is_tried_again_after_a_while(rig: Rig) -> None:
    near(rig, 1)
    rig.fail = [CheckpointFailed("the disk is full"), None]
    began = time.monotonic()
    assert rig.watch() == LEFT_AT_TIME_LIMIT
    assert time.monotonic() - began >= 0.05
    assert rig.saves == ["kill", "kill"]


def test_the_end_of_a_grace_time_that_nobody_heard_of_is_no_time_limit(rig: Rig) -> None:
    """Slurm began to preempt it while its script still staged in: its EndTime is that of the grace time."""
    near(rig, 5)
    rig.say(preempt=time.time() - 5)
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.directory.state["cause"]) == (["kill"], ["12"], "preempted")


def test_a_cancelled_job_whose_end_is_now_is_left_to_end(rig: Rig) -> None:
    near(rig, 0)
    rig.say(state="COMPLETING")
    rig.app.end_after = 5
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == ([], [])


@pytest.mark.parametrize("case", ["far", "extended", "none", "unknown"])
def test_a_time_limit_that_is_none_or_far_lets_it_run(rig: Rig, case: str) -> None:
    near(rig, 3600 if case == "far" else 1)
    if case == "extended":
        rig.say(end=time.time() + 3600)  # the controller's word of now
    elif case == "none":
        rig.tried.record = replace(rig.record, limited=False)
    elif case == "unknown":
        rig.tried.record = replace(rig.record, end=None)
    rig.app.end_after = 5
    assert rig.watch() == 0
    assert rig.saves == []


def test_a_time_limit_holds_while_the_controller_is_silent(rig: Rig) -> None:
    near(rig, 1)
    rig.silent = True
    assert rig.watch() == LEFT_AT_TIME_LIMIT
    assert "does not say whether it holds" in rig.log


def test_how_long_before_its_limit_a_job_leaves(rig: Rig) -> None:
    tried = rig.tried
    rig.monkeypatch.setattr(processes, "resident", lambda pid: 10**9)
    tried.saving.rate = 1e8
    tried.record = replace(rig.record, start=0.0, end=86400.0)
    assert tried._lead_seconds() == supervisor.MIN_LEAD_SECONDS + 20.0
    tried.record = replace(rig.record, start=0.0, end=40.0)
    assert tried._lead_seconds() == 20.0, "at most half of its time"
    for unknown in ({"start": None}, {"end": None}):
        tried.record = replace(rig.record, **unknown)  # type: ignore[arg-type]
        assert tried._lead_seconds() == supervisor.MIN_LEAD_SECONDS + 20.0

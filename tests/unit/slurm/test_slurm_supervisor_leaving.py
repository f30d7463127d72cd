"""When a Slurm job is warned: what its supervisor saves, requeues and hands on."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Any

import pytest

import torpor
from tests.unit.slurm.supervisor_rig import PATIENCE, SNAPSHOT, Rig
from torpor.errors import CheckpointFailed
from torpor.store import SnapshotInfo
from torpor_slurm import another_run, controller, saving
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.job_directory import RUN_TAG, JobDirectory
from torpor_slurm.preemption_cause import Cause, Finding
from torpor_slurm.run_options import Options
from torpor_slurm.supervisor import LEFT_AT_TIME_LIMIT


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
    assert rig.pinned == [SNAPSHOT], "neither `torpor rm` nor `torpor prune` takes it"
    assert rig.directory.finished is None, "it is not done"


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


FAULTS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP, signal.SIGSYS)
SENT = [*(signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT), *FAULTS, signal.SIGRTMIN + 5]


@pytest.mark.parametrize("number", SENT)
def test_a_signal_that_is_not_slurms_is_the_applications(rig: Rig, number: int) -> None:
    rig.app.end_after = 5
    rig.app.catches = {number}
    rig.warn(number)
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard) == ([], [], [number])
    assert rig.directory.finished is not None


@pytest.mark.parametrize("number", SENT)
def test_before_an_unexplained_signal_may_kill_it_a_job_is_saved(rig: Rig, number: int) -> None:
    """A requeue would raise it from the dead; but if its user wants to, it goes on from there."""
    rig.warn(number)
    assert rig.watch() == -number
    assert (rig.saves, rig.requeued, rig.app.heard) == (["run"], [], [number])
    assert (rig.directory.finished, rig.directory.state["phase"]) == (None, "ended")


def test_what_the_user_cancels_is_not_saved_first(rig: Rig) -> None:
    rig.say(state="COMPLETING")
    rig.warn()
    assert rig.watch() == -signal.SIGTERM
    assert (rig.saves, rig.requeued, rig.app.heard) == ([], [], [signal.SIGTERM])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, None])
@pytest.mark.parametrize("catches", [False, True])
@pytest.mark.parametrize("failures", [0, 2])
@pytest.mark.parametrize("answers", ["at once", "SIGNALING", "one step behind", "silent at first", "silent in the end"])
def test_a_preempted_job_is_saved_in_time_however_its_warning_comes(
    rig: Rig, number: int | None, catches: bool, failures: int, answers: str
) -> None:
    rig.monkeypatch.setattr(saving, "FIRST_RETRY", 0.02)
    rig.monkeypatch.setattr(controller, "RETRY", 0.02)
    rig.supervise(Options())
    before = rig.record
    rig.preempt()
    if answers == "SIGNALING":
        rig.late = [replace(rig.record, state="SIGNALING")] * 2
    elif answers == "one step behind" and not (number and catches):  # then the signal is the application's
        rig.late = [before]
    elif answers.startswith("silent"):
        rig.late = [None] * (1 if answers == "silent at first" else 5)
    rig.fail = [CheckpointFailed("it was not its moment")] * failures
    if number is None:
        rig.sentinel.news = ["ended", "has_started"]  # the next one starts soon
    else:
        rig.app.catches = {number} if catches else set()
        rig.warn(number)
    assert rig.watch() == 0
    assert (rig.saves[-1], rig.requeued, rig.directory.finished) == ("kill", ["12"], None)
    assert rig.app.heard == [] or catches, "what would kill it is not forwarded"


def test_one_that_ends_well_on_the_warning_of_a_preemption_is_not_finished(rig: Rig) -> None:
    def gives_in() -> None:
        rig.app.code = 0

    rig.app.catches, rig.app.gives_in = {signal.SIGTERM}, gives_in
    rig.preempt(grace=0)
    rig.fail = [CheckpointFailed("the disk is full")]
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard) == (["kill"], [signal.SIGTERM])
    assert (rig.requeued, rig.directory.finished) == (["12"], None)


def test_one_that_was_told_to_end_is_not_saved_in_the_middle_of_it(rig: Rig) -> None:
    """It would be woken there, end at once, and seem to have finished."""
    rig.monkeypatch.setattr(saving, "FIRST_RETRY", 0.01)
    rig.supervise(Options())
    rig.app.catches, rig.app.end_after = {signal.SIGTERM}, 20
    rig.preempt(grace=0)
    rig.fail = [CheckpointFailed("it has an io_uring")]
    rig.warn()
    rig.watch()
    assert (rig.saves, rig.app.heard) == (["kill"], [signal.SIGTERM])


def test_the_signal_is_held_back_while_half_of_the_time_is_left_for_retries(rig: Rig) -> None:
    rig.monkeypatch.setattr(saving, "FIRST_RETRY", 0.01)
    rig.supervise(Options())
    rig.app.catches = {signal.SIGTERM}
    rig.preempt()
    rig.fail = [CheckpointFailed("it is about to begin")] * 3
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard, rig.requeued) == (["kill"] * 4, [], ["12"])


def test_what_is_not_to_end_after_all_is_saved_at_the_next_warning(rig: Rig) -> None:
    held = rig.tried.saving
    held.hold(signal.SIGTERM, time.time())
    held.hold(signal.SIGUSR1, None)
    assert (held.due(), held.due()) == (signal.SIGTERM, None)
    assert not rig.tried._save("kill") and rig.saves == []
    held.let_go()
    assert held.due() is None
    assert rig.tried._save("kill")


def test_what_the_user_cancels_while_it_could_not_be_saved_is_left_to_end(rig: Rig) -> None:
    """The end of the application is its own: no save kills it in the middle."""
    rig.preempt()
    rig.app.catches = {signal.SIGTERM}
    rig.tried.leaving = Finding(Cause.PREEMPTED, rig.record.end)
    rig.tried.retry_at = time.monotonic() + PATIENCE
    rig.say(state="CANCELLED")
    rig.app.end_after = 5
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard, rig.directory.finished) == ([], [], [signal.SIGTERM], None)


def test_what_no_site_sends_as_a_warning_is_handed_on_unasked(rig: Rig) -> None:
    rig.silent = True
    rig.app.end_after = 5
    rig.warn(signal.SIGWINCH)
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard) == ([], [signal.SIGWINCH])


def test_what_it_was_started_to_ignore_is_handed_on(rig: Rig) -> None:
    """The application was started to ignore it, too, but may catch it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        rig.supervise(Options(), ignored=frozenset({signal.SIGHUP}))
        rig.app.end_after = 5
        rig.app.catches = {signal.SIGHUP}
        rig.warn(signal.SIGHUP)
        assert rig.watch() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert rig.app.heard == [signal.SIGHUP]


def test_while_the_controller_is_silent_a_warned_job_is_saved_and_goes_on(rig: Rig) -> None:
    rig.silent = True
    rig.app.end_after = 20
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard) == (["run"], [], [])


@pytest.mark.parametrize("catches", [False, True])
@pytest.mark.parametrize("silences", [1, 3])
def test_what_the_controller_has_no_reason_for_when_it_is_back_ends_nothing(
    rig: Rig, silences: int, catches: bool
) -> None:
    rig.app.catches = {signal.SIGTERM} if catches else set()
    rig.late = [None] * silences
    rig.app.end_after = 40
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.late, rig.app.heard) == (["run"], [], [signal.SIGTERM] if catches else [])
    assert rig.directory.finished is not None


def test_a_cancel_that_the_controller_tells_of_late_is_handed_on(rig: Rig) -> None:
    rig.say(state="CANCELLED")
    rig.late = [None] * 3
    rig.warn()
    assert rig.watch() == -signal.SIGTERM
    assert (rig.saves, rig.app.heard, rig.directory.finished) == (["run"], [signal.SIGTERM], None)


def test_a_save_that_fails_is_tried_again_before_an_application_that_listens_is_warned(rig: Rig) -> None:
    rig.app.catches = {signal.SIGTERM}
    rig.supervise(Options(every=0.01))
    rig.preempt()
    rig.fail = [CheckpointFailed("the disk is full"), CheckpointFailed("still"), None]
    rig.warn()
    began = time.monotonic()
    assert rig.watch() == 0
    assert time.monotonic() - began >= 2 * 0.05, "it waits between two tries"
    assert (rig.saves, rig.requeued) == (["kill"] * 3, ["12"]), "to leave is what counts now"
    assert rig.app.heard == [], "half of the time is not over"


def test_a_fault_of_ours_in_a_save_does_not_cost_the_job(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.preempt()
    rig.fail = [RuntimeError("a fault"), None]
    rig.warn()
    assert rig.watch() == 0
    assert rig.saves == ["kill", "kill"]
    assert "RuntimeError: a fault" in capfd.readouterr().err
    assert "RuntimeError: a fault" in rig.log


@pytest.mark.parametrize("heard", ["signal", "sentinel", "pulse"])
def test_a_fault_of_ours_elsewhere_does_not_cost_the_job(
    rig: Rig, heard: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rig.preempt()
    rig.supervise(Options())
    kept, faults = rig.tried._find_cause, [OSError("too many open files"), ValueError("a fault")]

    def at_fault(*arguments: Any) -> Finding | None:
        if faults:
            raise faults.pop()
        return kept(*arguments)

    rig.monkeypatch.setattr(rig.tried, "_find_cause", at_fault)
    if heard == "signal":
        rig.warn()
    else:
        rig.sentinel.news = ["ended"] if heard == "sentinel" else ["has_started"]
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], ["12"])
    assert f"{'received SIGTERM' if heard == 'signal' else 'the sentinel step was ended'}: preempted" in rig.log
    told = capfd.readouterr().err
    assert told.count("ValueError: a fault") == told.count("too many open files") == 1


def test_a_requeue_that_is_refused_is_an_end(rig: Rig) -> None:
    def refuses(job: str) -> None:
        raise SlurmError("Requested operation is disabled")

    rig.monkeypatch.setattr(controller, "requeue", refuses)
    rig.preempt()
    rig.warn()
    with pytest.raises(SlurmError, match="is disabled"):
        rig.watch()


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


def test_a_run_that_is_shut_out_meanwhile_asks_for_nothing(rig: Rig) -> None:
    rig.silent = True
    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    another_run.request(rig.directory, 0, None)
    assert rig.requeued == []


def test_a_fault_of_ours_after_its_end_ends_the_run(rig: Rig) -> None:
    """There is nothing to run on any more."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    rig.preempt()
    rig.monkeypatch.setattr(controller, "requeue", fail)
    rig.warn()
    with pytest.raises(RuntimeError, match="a fault"):
        rig.watch()
    assert rig.saves == ["kill"]


def test_each_warning_that_is_not_explained_is_asked_for(rig: Rig) -> None:
    asked: list[tuple[int | None, list[int | None]]] = []

    def warned(number: int | None, *, before: bool) -> None:
        assert before
        asked.append((number, [*rig.tried.unexplained]))

    rig.monkeypatch.setattr(rig.tried, "_warned", warned)
    rig.tried.unexplained = [signal.SIGTERM, None, signal.SIGTERM]
    assert rig.tried._ask_again() is None
    assert asked == [(signal.SIGTERM, [None]), (None, [])]


def test_what_is_handed_on_is_remembered_if_it_may_end_it(rig: Rig) -> None:
    rig.tried._forward(signal.SIGWINCH)
    assert (rig.tried.forwarded, rig.tried.asked_to_end) == (set(), False)
    rig.tried._forward(signal.SIGUSR1)
    assert (rig.tried.forwarded, rig.tried.asked_to_end) == ({signal.SIGUSR1}, False)
    rig.tried._forward(signal.SIGUSR2, asks_to_end=True)
    assert (rig.tried.forwarded, rig.tried.asked_to_end) == ({signal.SIGUSR1, signal.SIGUSR2}, True)


def test_a_silent_controller_when_the_sentinel_listens_is_no_error(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.silent = True
    rig.sentinel.news = ["has_started"]
    rig.app.end_after = 3
    assert rig.watch() == 0
    assert "after an error" not in capfd.readouterr().err

"""Saves while a job runs, later runs that shut it out, and how it ends."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import torpor
from tests.unit.slurm.supervisor_rig import PATIENCE, Rig
from torpor.errors import Refused, StoreError
from torpor.store import SnapshotInfo
from torpor_slurm import lifeline, supervisor
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.preemption_cause import Cause, Finding
from torpor_slurm.run_options import Options
from torpor_slurm.supervisor import FENCED, Supervisor


def test_a_job_is_saved_again_and_again(rig: Rig) -> None:
    rig.supervise(Options(every=0.05))
    rig.monkeypatch.setattr(supervisor, "POLL_SECONDS", 60.0)
    rig.monkeypatch.setattr(supervisor, "SHORT_POLL_SECONDS", 60.0)
    rig.fail = [StoreError("full"), None]
    kept = rig._checkpoint

    def third(*arguments: Any, **named: Any) -> SnapshotInfo:
        if len(rig.saves) == 2:
            rig.app.end_after = 0
        return kept(*arguments, **named)

    rig.monkeypatch.setattr(torpor, "checkpoint", third)
    began = time.monotonic()
    assert rig.watch() == 0
    assert rig.saves == ["run"] * 3
    assert 0.15 <= time.monotonic() - began < PATIENCE


def test_without_every_it_is_never_saved_for_nothing(rig: Rig) -> None:
    rig.app.end_after = 5
    assert rig.watch() == 0
    assert rig.saves == []


def test_a_run_that_finds_a_later_one_ends(rig: Rig) -> None:
    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    assert rig.watch() == FENCED
    assert (rig.app.heard, rig.app.waited, rig.saves) == ([signal.SIGKILL], True, [])
    assert rig.directory.finished is None


def test_a_fault_of_ours_after_the_end_of_one_that_is_shut_out_ends_the_run(rig: Rig) -> None:
    def fail() -> int:
        raise RuntimeError("a fault")

    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    rig.monkeypatch.setattr(rig.app, "wait", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        rig.watch()
    assert "found a later one: it ends" in rig.log


def test_the_end_of_one_that_is_shut_out_tells_nothing_of_the_job(rig: Rig) -> None:
    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    rig.app.code = 0
    assert rig.watch() == FENCED
    assert rig.directory.finished is None


@pytest.mark.parametrize("code", [0, 1, 3, -signal.SIGSEGV])
def test_what_ends_by_itself_is_finished(rig: Rig, code: int) -> None:
    rig.app.code = code
    assert rig.watch() == code
    found = rig.directory.finished
    assert found is not None
    assert (found.code, rig.directory.state["phase"], rig.directory.state["code"]) == (code, "finished", code)


def test_what_a_signal_of_the_users_ends_is_finished(rig: Rig) -> None:
    rig.app.code = -signal.SIGTERM
    assert rig.watch() == -signal.SIGTERM
    assert rig.directory.finished is not None


@pytest.mark.parametrize(
    ("code", "warned", "changes"),
    [
        (-signal.SIGKILL, False, {}),  # for want of memory, or by hand
        (-signal.SIGTERM, False, {"reason": "TimeLimit"}),
        (-signal.SIGTERM, False, {"state": "CANCELLED"}),
        (1, True, {"state": "COMPLETING"}),
        (1, True, {"restarts": 1}),
        # Without cgroups it is signalled itself, and may have ended before the supervisor has heard anything.
        *((code, False, {"state": "COMPLETING"}) for code in (0, 3, -signal.SIGSEGV)),
        (0, False, {"restarts": 1}),
        (0, True, {"reason": "TimeLimit", "state": "COMPLETING"}),
    ],
)
def test_what_slurm_ends_is_not_finished(rig: Rig, code: int, warned: bool, changes: dict[str, Any]) -> None:
    rig.say(**changes)
    rig.app.code, rig.tried.warned = code, warned
    assert rig.watch() == code
    assert (rig.directory.finished, rig.directory.state["phase"], rig.requeued) == (None, "ended", [])


def test_what_the_user_cancels_is_not_finished_by_what_it_does_then(rig: Rig) -> None:
    """It cleans up and ends with an error of its own."""

    def gives_in() -> None:
        rig.say(state="COMPLETING")
        rig.app.code = 1

    rig.app.gives_in = gives_in
    rig.warn()
    assert rig.watch() == 1
    assert (rig.directory.finished, rig.directory.state["phase"]) == (None, "ended")


def test_one_that_ends_with_an_error_long_after_a_warning_of_no_meaning(rig: Rig) -> None:
    rig.tried.warned, rig.app.code = True, 1
    assert rig.watch() == 1
    assert rig.directory.finished is not None


def test_what_ends_while_nobody_says_why_is_not_finished(rig: Rig) -> None:
    rig.silent = True
    rig.app.code = -signal.SIGTERM
    assert rig.watch() == -signal.SIGTERM
    assert rig.directory.finished is None


@pytest.mark.parametrize(
    ("saved", "choice", "requeued"), [(True, "requeue", ["12"]), (False, "requeue", []), (True, "stop", [])]
)
def test_what_a_time_limit_ends_is_requeued_if_it_gets_further(
    rig: Rig, saved: bool, choice: Any, requeued: list[str]
) -> None:
    """Without cgroups Slurm signals it itself, and it ends before the supervisor has heard anything."""
    rig.supervise(Options(on_timeout=choice))
    rig.say(reason="TimeLimit", state="COMPLETING")
    rig.tried.saving.succeeded = saved
    rig.app.code = -signal.SIGTERM
    assert rig.watch() == -signal.SIGTERM
    assert (rig.requeued, rig.directory.finished) == (requeued, None)


@pytest.mark.parametrize(
    ("code", "asked_to_end", "own"), [(0, False, True), (3, False, True), (3, True, False), (-15, False, False)]
)
def test_what_ends_when_it_is_requeued_keeps_its_output_if_it_was_not_told_to(
    rig: Rig, code: int, asked_to_end: bool, own: bool
) -> None:
    rig.say(restarts=1)
    rig.app.code, rig.tried.asked_to_end = code, asked_to_end
    assert rig.watch() == code
    again = JobDirectory(rig.directory.base, "12", "c")
    again.begin(1, "n1", 2.0, ["true"])
    assert (again.first_outputs(1) is None) == own


def test_what_a_preemption_ends_unsaved_is_requeued(rig: Rig) -> None:
    rig.preempt()
    rig.app.code, rig.tried.leaving = 1, Finding(Cause.PREEMPTED, time.time() + 60)
    assert rig.watch() == 1
    assert (rig.requeued, rig.directory.finished) == (["12"], None)


def test_one_that_ends_well_at_the_end_of_a_grace_time_is_requeued(rig: Rig) -> None:
    rig.preempt(0)
    rig.say(state="COMPLETING")
    rig.app.code = 0
    assert rig.watch() == 0
    assert (rig.requeued, rig.directory.finished) == (["12"], None)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("answers", [False, True])
def test_what_ends_as_a_warning_comes_is_not_finished_while_nobody_says_why(rig: Rig, code: int, answers: bool) -> None:
    """Without cgroups it is signalled itself, and ends before the supervisor has looked."""
    rig.app.code = code
    rig.warn()
    rig.preempt(0)
    rig.say(state="COMPLETING")
    rig.late = [None] * 2
    rig.silent = not answers
    assert rig.watch() == code
    assert (rig.directory.finished, rig.requeued) == (None, ["12"] if answers else [])


@pytest.mark.parametrize("code", [0, 7])
def test_what_ends_well_while_the_controller_is_silent_is_finished(rig: Rig, code: int) -> None:
    rig.silent = True
    rig.app.code = code
    assert rig.watch() == code
    assert rig.directory.finished is not None


def test_an_exit_code_that_cannot_be_kept_is_given_all_the_same(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise StoreError("no room")

    rig.monkeypatch.setattr(rig.directory, "finish", full)
    rig.app.code = 3
    assert rig.watch() == 3
    assert "ended with 3, but this cannot be recorded: no room" in capfd.readouterr().err


def test_one_that_has_finished_is_not_run_again(rig: Rig) -> None:
    rig.directory.finish(0, 7)
    later = replace(rig.allocation, restarts=1)
    assert supervisor.supervise(["true"], later, rig.directory, Options()) == 7


def test_a_second_application_of_a_script_does_not_pass_for_the_first(rig: Rig) -> None:
    rig.say(start=1.0)
    rig.app.code = 0
    assert rig.watch() == 0
    whole(rig)
    rig.app.code = 5
    assert supervisor.supervise(["false"], rig.allocation, rig.directory, Options()) == 5
    codes = [(place.command, place.finished and place.finished.code) for place in rig.directory.places()]
    assert codes == [(["true"], 0), (["false"], 5)]


def test_what_comes_after_one_that_left_is_not_for_this_run(rig: Rig) -> None:
    rig.say(start=1.0)
    rig.tried.directory.update_state(run=0)
    rig.preempt()
    rig.warn()
    assert rig.watch() == 0
    with pytest.raises(Refused, match=r"false is not run: .* it has been saved, or Slurm ends it"):
        supervisor.supervise(["false"], rig.allocation, rig.directory, Options())


@pytest.mark.parametrize(("cause", "goes_on"), [({}, True), ({"state": "CANCELLED"}, False), ({"restarts": 1}, False)])
def test_a_script_goes_on_after_one_that_slurm_has_not_ended(rig: Rig, cause: dict[str, Any], goes_on: bool) -> None:
    """As when the OOM killer has."""
    rig.say(**cause)
    rig.app.code = -signal.SIGKILL
    assert rig.watch() == -signal.SIGKILL
    assert rig.directory.has_ended(0) == goes_on
    assert rig.directory.finished is None


def whole(rig: Rig) -> None:
    """What a run needs from its begin on."""
    rig.monkeypatch.setattr(Supervisor, "_start", lambda _: rig.app)
    rig.monkeypatch.setattr(lifeline, "tie", lambda _: None)
    rig.monkeypatch.setattr(supervisor, "Sentinel", lambda *_: nullcontext(rig.sentinel))


@pytest.mark.parametrize("shared", [True, False])
def test_a_job_that_begins_anew_since_its_store_is_another_nodes_says_so(
    rig: Rig, tmp_path: Path, capfd: pytest.CaptureFixture[str], shared: bool
) -> None:
    whole(rig)
    rig.app.code = 5
    if not shared:
        (tmp_path / "another").mkdir()
    directory = rig.directory if shared else JobDirectory(tmp_path / "another", "12", "c")
    later = replace(rig.allocation, restarts=2)
    assert supervisor.supervise(["true"], later, directory, Options()) == 5
    assert ("restarted job 12 2 times, but no run of it" in capfd.readouterr().err) != shared


def test_what_another_job_of_the_same_id_has_finished_is_not_this_ones(rig: Rig) -> None:
    """After the controller has lost its state, or when ids begin anew."""
    rig.directory.finish(0, 0)
    whole(rig)
    rig.app.code = 5
    assert supervisor.supervise(["true"], rig.allocation, rig.directory, Options()) == 5
    assert rig.directory.finished is not None
    assert rig.directory.finished.code == 5

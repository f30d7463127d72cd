"""The supervisor of a Slurm job: what it does when, with a cluster, an application and a store that are made up.

Real jobs on a real cluster are in tests/integration/test_slurm.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from tests.unit.slurm.slurm_job import LINE, environment
from torpor import Stats, processes
from torpor.errors import CheckpointFailed, NotFound, Reason, Refused, RestoreFailed, RestoreRefused, StoreError
from torpor.image import Tree
from torpor.store import SnapshotInfo
from torpor_slurm import controller, step, supervisor
from torpor_slurm import home as homes
from torpor_slurm.allocation import Allocation
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.home import RUN_TAG, JobHome
from torpor_slurm.supervisor import FENCED, LEFT_AT_TIME_LIMIT, Options, Supervisor
from torpor_slurm.why import Answer, Cause

PATIENCE = 20.0


class Application:
    """What is supervised, as a `Job` shows it."""

    def __init__(self) -> None:
        self.tree_pid = os.getpid()
        self.heard: list[int] = []
        self.code: int | None = None
        self.looks = 0
        self.end_after: int | None = None
        """Looks after which it has ended with 0 by itself."""
        self.waited = False
        self.gives_in: Callable[[], None] | None = None
        """What happens when it is sent SIGTERM."""

    def send_signal(self, number: int) -> None:
        self.heard.append(number)
        if number == signal.SIGTERM and self.gives_in:
            self.gives_in()
        if number == signal.SIGKILL:
            self.code = -number

    def poll(self) -> int | None:
        self.looks += 1
        if self.code is None and self.end_after is not None and self.looks > self.end_after:
            self.code = 0
        return self.code

    def wait(self) -> int:
        assert self.code is not None, "nobody has ended it"
        self.waited = True
        return self.code


class Listener:
    """A sentinel."""

    def __init__(self) -> None:
        self.starting = True
        self.news: list[str] = []

    def _take(self, what: str) -> bool:
        if self.news and self.news[0] == what:
            return bool(self.news.pop(0))
        return False

    def listens(self) -> bool:
        return self._take("listens")

    def ended(self) -> bool:
        return self._take("ended")


def opened(image: Tree) -> Any:
    """A snapshot of one process, open."""
    image.processes.add()
    info = SnapshotInfo("20261123-000000000-aaaaaa", "", "tree")
    return nullcontext(SimpleNamespace(info=info, body=image.SerializeToString()))


class Rig:
    """A supervisor in the middle of a run, and all that it touches."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        allocation = Allocation.here(environment())
        assert allocation is not None
        self.home = JobHome(tmp_path / "store", "12", "c")
        self.home.begin(0, "n1", 1.0)
        self.app, self.sentinel = Application(), Listener()
        self.record = replace(JobRecord.parse(LINE), start=time.time() - 100, end=time.time() + 86400)
        self.silent = False
        self.saves: list[str] = []
        self.tags: list[dict[str, str]] = []
        self.fail: list[Exception | None] = []
        """What the next saves end in."""
        self.size, self.written = 1 << 20, 1 << 20
        self.notices: tuple[str, ...] = ()
        self.pruned = 0
        self.requeued: list[str] = []
        self.allocation = allocation
        self.monkeypatch = monkeypatch
        self.tried = self.supervise(Options())
        for name, value in (("PULSE", 0.01), ("SHORT_PULSE", 0.01), ("RETRY", 0.05)):
            monkeypatch.setattr(supervisor, name, value)
        monkeypatch.setattr(torpor, "checkpoint", self._checkpoint)
        monkeypatch.setattr(controller, "job_record", self._job_record)
        monkeypatch.setattr(controller, "requeue", self._requeue)
        monkeypatch.setattr(self.home.store, "open", self._open)
        monkeypatch.setattr(self.home, "prune", self._prune)

    def supervise(self, options: Options, ignored: frozenset[int] = frozenset()) -> Supervisor:
        given = processes.inherited_signals()._replace(ignored=ignored)
        self.tried = Supervisor(["true"], self.allocation, self.home, options, given)
        self.tried.job, self.tried.record = self.app, self.record  # type: ignore[assignment]
        return self.tried

    def _checkpoint(self, pid: int, *, then: str, tags: dict[str, str], stats: Stats, **_: object) -> SnapshotInfo:
        assert pid == self.app.tree_pid
        stats.pause_ns = 5_000_000
        self.saves.append(then)
        self.tags.append(tags)
        if self.fail and (error := self.fail.pop(0)) is not None:
            raise error
        if then == "kill":
            self.app.code = -signal.SIGKILL
        id = "20261123-000000000-aaaaaa"
        return SnapshotInfo(id, "", "tree", size=self.size, written=self.written, notices=self.notices)

    def _job_record(self, job: str) -> JobRecord:
        assert job == "12"
        if self.silent:
            raise SlurmError("Unable to contact slurm controller")
        return self.record

    def _requeue(self, job: str) -> None:
        self.requeued.append(job)

    def _open(self, _: object) -> Any:
        return opened(Tree())

    def _prune(self, restarts: int, found: object) -> None:
        assert restarts == 0
        self.pruned += 1

    def say(self, **changes: Any) -> None:
        """What the controller says from now on."""
        self.record = replace(self.record, **changes)

    def preempt(self, grace: float = 60.0) -> None:
        self.say(preempt=time.time(), end=time.time() + grace)

    def warn(self, number: int = signal.SIGTERM) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def watch(self) -> int:
        return self.tried._watch(self.sentinel)  # type: ignore[arg-type]

    @property
    def log(self) -> str:
        return (self.home.path / "log").read_text()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.HEARD)
    try:
        yield Rig(tmp_path, monkeypatch)
    finally:
        while signal.sigtimedwait(supervisor.HEARD - {signal.SIGALRM}, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------------------- leaving


def test_a_preempted_job_is_saved_ended_and_requeued_once(rig: Rig) -> None:
    rig.preempt()
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued, rig.app.heard, rig.app.waited) == (["kill"], ["12"], [], True)
    assert rig.tags == [{RUN_TAG: "0", "slurm-job": "12"}]
    state = rig.home.state
    assert (state["phase"], state["cause"]) == ("left", "preempted")
    assert (state["bytes"], state["pause_seconds"]) == (1 << 20, 0.005)
    assert 0 <= state["save_seconds"] <= state["leave_seconds"] < PATIENCE
    assert rig.pruned == 1
    assert rig.home.finished is None, "it is not done"


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
    rig.tried.leaving = Answer(Cause.PREEMPTED, end)
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
    JobHome(rig.home.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    rig.tried._requeue(None)
    assert rig.requeued == []


# ------------------------------------------------------------------------------------------- the sentinel, the clock


@pytest.mark.parametrize("requeued", [False, True])
def test_a_grace_time_that_began_before_anybody_listened(rig: Rig, requeued: bool) -> None:
    rig.preempt()
    rig.say(restarts=int(requeued))
    rig.sentinel.news = ["listens"]
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], [] if requeued else ["12"])


def test_a_sentinel_that_listens_or_ends_without_a_cause_changes_nothing(rig: Rig) -> None:
    rig.sentinel.news = ["listens", "ended"]
    rig.app.end_after = 6
    assert rig.watch() == 0
    assert (rig.saves, rig.app.heard, rig.sentinel.news) == ([], [], [])


def test_a_time_limit_that_is_near_is_nothing_that_came_too_early(rig: Rig) -> None:
    rig.say(reason="TimeLimit")
    rig.app.end_after = 3
    rig.sentinel.news = ["listens"]
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
    near(rig, supervisor.LEAST_LEAD - 1)
    assert rig.watch() == LEFT_AT_TIME_LIMIT
    assert (rig.saves, rig.home.state["cause"]) == (["kill"], "time limit")


def test_at_its_limit_a_save_that_fails_is_tried_again_after_a_while(rig: Rig) -> None:
    near(rig, 1)
    rig.fail = [CheckpointFailed("the disk is full"), None]
    began = time.monotonic()
    assert rig.watch() == LEFT_AT_TIME_LIMIT
    assert time.monotonic() - began >= 0.05
    assert rig.saves == ["kill", "kill"]


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
    tried.rate = 1e8
    tried.record = replace(rig.record, start=0.0, end=86400.0)
    assert tried._lead() == supervisor.LEAST_LEAD + 20.0
    tried.record = replace(rig.record, start=0.0, end=40.0)
    assert tried._lead() == 20.0, "at most half of its time"
    for unknown in ({"start": None}, {"end": None}):
        tried.record = replace(rig.record, **unknown)  # type: ignore[arg-type]
        assert tried._lead() == supervisor.LEAST_LEAD + 20.0


def test_a_save_tells_how_fast_a_save_is(rig: Rig) -> None:
    rig.size, rig.written = 10**12, 10**12
    assert rig.tried._save("run")
    fast = rig.tried.rate
    assert fast > supervisor.FIRST_RATE
    rig.size, rig.written = 10**20, 10**12
    assert rig.tried._save("run")
    assert rig.tried.rate == fast, "little was written: it does not tell how fast one can be"
    rig.size, rig.written = 1, 0
    assert rig.tried._save("run")
    assert rig.tried.rate < fast, "but how slow"


# ------------------------------------------------------------------------------------------- while it runs


def test_a_job_is_saved_again_and_again(rig: Rig) -> None:
    rig.supervise(Options(every=0.05))
    rig.monkeypatch.setattr(supervisor, "PULSE", 60.0)
    rig.monkeypatch.setattr(supervisor, "SHORT_PULSE", 60.0)
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
    JobHome(rig.home.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    assert rig.watch() == FENCED
    assert (rig.app.heard, rig.app.waited, rig.saves) == ([signal.SIGKILL], True, [])
    assert rig.home.finished is None


def test_the_end_of_one_that_is_shut_out_tells_nothing_of_the_job(rig: Rig) -> None:
    JobHome(rig.home.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    rig.app.code = 0
    assert rig.watch() == FENCED
    assert rig.home.finished is None


# ------------------------------------------------------------------------------------------- its end


@pytest.mark.parametrize("code", [0, 1, 3, -signal.SIGSEGV])
def test_what_ends_by_itself_is_finished(rig: Rig, code: int) -> None:
    rig.app.code = code
    assert rig.watch() == code
    found = rig.home.finished
    assert found is not None
    assert (found.code, rig.home.state["phase"], rig.home.state["code"]) == (code, "finished", code)


def test_what_comes_to_its_end_while_slurm_ends_it_is_finished(rig: Rig) -> None:
    rig.say(state="COMPLETING")
    rig.app.code, rig.tried.warned = 0, True
    assert rig.watch() == 0
    assert rig.home.finished is not None


def test_what_a_signal_of_the_users_ends_is_finished(rig: Rig) -> None:
    rig.app.code = -signal.SIGTERM
    assert rig.watch() == -signal.SIGTERM
    assert rig.home.finished is not None


@pytest.mark.parametrize(
    ("code", "warned", "changes"),
    [
        (-signal.SIGKILL, False, {}),  # for want of memory, or by hand
        (-signal.SIGTERM, False, {"reason": "TimeLimit"}),
        (-signal.SIGTERM, False, {"state": "CANCELLED"}),
        (1, True, {"state": "COMPLETING"}),
        (1, True, {"restarts": 1}),
    ],
)
def test_what_slurm_ends_is_not_finished(rig: Rig, code: int, warned: bool, changes: dict[str, Any]) -> None:
    rig.say(**changes)
    rig.app.code, rig.tried.warned = code, warned
    assert rig.watch() == code
    assert (rig.home.finished, rig.home.state["phase"], rig.requeued) == (None, "ended", [])


def test_what_the_user_cancels_is_not_finished_by_what_it_does_then(rig: Rig) -> None:
    """It cleans up and ends with an error of its own."""

    def gives_in() -> None:
        rig.say(state="COMPLETING")
        rig.app.code = 1

    rig.app.gives_in = gives_in
    rig.warn()
    assert rig.watch() == 1
    assert (rig.home.finished, rig.home.state["phase"]) == (None, "ended")


def test_one_that_ends_with_an_error_long_after_a_warning_of_no_meaning(rig: Rig) -> None:
    rig.tried.warned, rig.app.code = True, 1
    assert rig.watch() == 1
    assert rig.home.finished is not None


def test_what_ends_while_nobody_says_why_is_not_finished(rig: Rig) -> None:
    rig.silent = True
    rig.app.code = -signal.SIGTERM
    assert rig.watch() == -signal.SIGTERM
    assert rig.home.finished is None


def test_what_a_preemption_ends_unsaved_is_requeued(rig: Rig) -> None:
    rig.preempt()
    rig.app.code, rig.tried.leaving = 1, Answer(Cause.PREEMPTED, time.time() + 60)
    assert rig.watch() == 1
    assert (rig.requeued, rig.home.finished) == (["12"], None)


def test_an_exit_code_that_cannot_be_kept_is_given_all_the_same(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise StoreError("no room")

    rig.monkeypatch.setattr(rig.home, "finish", full)
    rig.app.code = 3
    assert rig.watch() == 3
    assert "ended with 3, but that cannot be kept: no room" in capfd.readouterr().err


def test_one_that_has_finished_is_not_run_again(rig: Rig) -> None:
    rig.home.finish(0, 7)
    assert supervisor.supervise(["true"], rig.allocation, rig.home, Options()) == 7


# ------------------------------------------------------------------------------------------- waking


NEW, OLD = (SnapshotInfo(f"2026112{day}-000000000-aaaaaa", "", "tree") for day in (4, 3))
CHANGED = RestoreRefused("no", [Reason("/data", "it was changed since", "put it back", changed=True)])
MISSING = RestoreRefused("no", [Reason("/lib", "it is gone", "put it back"), *CHANGED.reasons])


class Waking:
    """Restores that end as they are told to."""

    def __init__(self, rig: Rig, outcomes: dict[str, Exception | None]) -> None:
        self.outcomes = outcomes
        self.tried: list[tuple[str, str]] = []
        rig.tried.found = [NEW, OLD]
        rig.monkeypatch.setattr(torpor, "restore", self._restore)
        self.app = rig.app

    def _restore(self, snapshot: SnapshotInfo, *, files: str, connected: Any, first: Any, **_: object) -> Application:
        self.tried.append((snapshot.id, files))
        assert not first("python")
        if error := self.outcomes[snapshot.id]:
            raise error
        connected()
        return self.app


def test_the_newest_snapshot_is_woken(rig: Rig) -> None:
    waking = Waking(rig, {NEW.id: None})
    assert rig.tried._wake() is rig.app
    assert waking.tried == [(NEW.id, "as-they-were")]


@pytest.mark.parametrize("error", [MISSING, RestoreFailed("a step failed"), NotFound("it is gone")])
def test_an_older_snapshot_is_woken_when_the_newest_cannot_be(rig: Rig, error: Exception) -> None:
    waking = Waking(rig, {NEW.id: error, OLD.id: None})
    assert rig.tried._wake() is rig.app
    assert [id for id, _ in waking.tried] == [NEW.id, OLD.id]


@pytest.mark.parametrize(("choice", "tries"), [("older", 2), ("stop", 1)])
def test_when_none_can_be_woken_it_is_not_begun_anew(rig: Rig, choice: Any, tries: int) -> None:
    rig.supervise(Options(on_refused=choice))
    waking = Waking(rig, {NEW.id: MISSING, OLD.id: MISSING})
    with pytest.raises(RestoreRefused):
        rig.tried._wake()
    assert len(waking.tried) == tries


def test_it_begins_anew_only_where_that_is_chosen(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.supervise(Options(on_refused="anew"))
    waking = Waking(rig, {NEW.id: MISSING, OLD.id: MISSING})
    assert rig.tried._wake() is None
    assert len(waking.tried) == 2
    assert "begins anew" in capfd.readouterr().err


def test_a_store_that_cannot_be_read_is_no_reason_to_take_an_older_one(rig: Rig) -> None:
    rig.supervise(Options(on_refused="anew"))
    Waking(rig, {NEW.id: StoreError("stale")})
    with pytest.raises(StoreError):
        rig.tried._wake()


def test_a_later_run_that_begins_meanwhile_goes_on(rig: Rig) -> None:
    Waking(rig, {NEW.id: None})
    JobHome(rig.home.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    with pytest.raises(Refused, match="a later run of it has begun"):
        rig.tried._wake()


def grown(rig: Rig, tmp_path: Path) -> Path:
    """An output file that has grown since."""
    output = tmp_path / "output"
    output.write_bytes(b"onetwo")
    image = Tree()
    kept = image.descriptions.add(flags=os.O_WRONLY | os.O_APPEND)
    kept.file.path, kept.file.size, kept.file.ino = bytes(output), 3, output.stat().st_ino
    rig.monkeypatch.setattr(rig.home.store, "open", lambda _: opened(image))
    return output


@pytest.mark.parametrize(("choice", "left"), [("append-only", b"one"), ("none", b"onetwo")])
def test_output_is_cut_when_all_is_built(rig: Rig, tmp_path: Path, choice: Any, left: bytes) -> None:
    rig.supervise(Options(rollback_files=choice))
    output = grown(rig, tmp_path)
    Waking(rig, {NEW.id: None})
    rig.tried._wake()
    assert output.read_bytes() == left


def test_output_is_not_cut_for_a_snapshot_that_is_refused(rig: Rig, tmp_path: Path) -> None:
    output = grown(rig, tmp_path)
    Waking(rig, {NEW.id: MISSING, OLD.id: MISSING})
    with pytest.raises(RestoreRefused):
        rig.tried._wake()
    assert output.read_bytes() == b"onetwo"


# ------------------------------------------------------------------------------------------- files as they are


def test_files_are_taken_as_they_are_by_an_option(rig: Rig) -> None:
    rig.supervise(Options(files="as-they-are"))
    waking = Waking(rig, {NEW.id: None})
    rig.tried._wake()
    assert waking.tried == [(NEW.id, "as-they-are")]


def test_files_are_taken_as_they_are_in_the_run_that_was_asked_for(rig: Rig) -> None:
    rig.home.tell(phase="left")
    home = homes.requeue(rig.home.path.parents[1], "12", "as-they-are")
    assert (home.path, rig.requeued) == (rig.home.path, ["12"])
    assert [rig.home.files_wanted(run) for run in range(3)] == [None, "as-they-are", None]
    rig.tried.allocation = replace(rig.allocation, restarts=1)
    waking = Waking(rig, {NEW.id: None})
    rig.tried._wake()
    assert waking.tried == [(NEW.id, "as-they-are")]
    homes.requeue(rig.home.path.parents[1], "12", "as-they-were")
    assert rig.home.files_wanted(1) is None
    with pytest.raises(NotFound, match="there is no job 13"):
        homes.requeue(rig.home.path.parents[1], "13", "as-they-are")
    assert rig.requeued == ["12", "12"]


def test_only_a_changed_file_is_said_to_be_taken_as_it_is(rig: Rig) -> None:
    rig.supervise(Options(on_refused="stop"))
    way = r"torpor slurm requeue 12 --files=as-they-are"
    Waking(rig, {NEW.id: RestoreRefused("no", CHANGED.reasons)})
    with pytest.raises(RestoreRefused, match=way):
        rig.tried._wake()
    Waking(rig, {NEW.id: MISSING})
    with pytest.raises(RestoreRefused) as told:
        rig.tried._wake()
    assert way not in str(told.value)


# ------------------------------------------------------------------------------------------- processes


def test_a_srun_of_slurms_own_is_not_saved(rig: Rig, tmp_path: Path) -> None:
    """What it runs are Slurm's children."""
    srun = tmp_path / "srun"
    shutil.copy(shutil.which("sleep") or "", srun)
    step.refuse_real_srun(os.getpid())
    with subprocess.Popen([srun, "60"]) as child:
        try:
            with pytest.raises(Refused, match=f"srun, process {child.pid}"):
                step.refuse_real_srun(os.getpid())
            assert not rig.tried._save("kill")
            assert rig.saves == []
        finally:
            child.kill()

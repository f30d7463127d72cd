"""What a save of a Slurm job costs and tells, and when one that failed is tried again."""

from __future__ import annotations

import time

import pytest

from tests.unit.slurm.supervisor_rig import Rig
from torpor import processes
from torpor.errors import CheckpointFailed, NotFound, StoreError
from torpor_slurm import saving
from torpor_slurm.preemption_cause import Cause, Finding
from torpor_slurm.run_options import Options


def test_what_a_wake_will_not_bring_back_is_told_once(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.notices = ("a connection is lost",)
    for _ in range(2):
        assert rig.tried._save("run")
    rig.notices = ("a connection is lost", "another one is")
    assert rig.tried._save("run")
    told = [line for line in capfd.readouterr().err.splitlines() if "saved, but" in line]
    assert told == ["torpor: saved, but a connection is lost", "torpor: saved, but another one is"]


def test_one_that_ends_while_it_is_saved_is_no_failed_save(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.fail = [NotFound("there is no process 9")]
    rig.monkeypatch.setattr(processes, "is_ending", lambda pid: True)
    assert not rig.tried._save("run")
    assert "not saved" not in capfd.readouterr().err


def test_why_a_save_failed_is_told_once_until_one_succeeds(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    full = StoreError("the disk is full")
    rig.fail = [full, full, NotFound("the store is not mounted"), full, None, full]
    assert [rig.tried._save("run") for _ in range(6)] == [False] * 4 + [True, False]
    words = [line.removeprefix("torpor: not saved: ") for line in capfd.readouterr().err.splitlines()]
    assert words == ["the disk is full", "the store is not mounted", "the disk is full"]
    assert rig.log.count("not saved") == 5


def test_a_save_that_fails_is_tried_again_soon_and_then_less_often(rig: Rig) -> None:
    rig.monkeypatch.setattr(saving, "LAST_RETRY", 0.15)
    rig.supervise(Options())
    leaving = Finding(Cause.PREEMPTED, time.time() + 60)
    rig.fail = [CheckpointFailed("busy")] * 4
    waits = [rig.tried.saving.retry]
    for _ in range(4):
        assert rig.tried._leave(leaving) is None
        waits.append(rig.tried.saving.retry)
    assert waits == [0.05, 0.1, 0.15, 0.15, 0.15]
    assert rig.tried._save("run")
    assert rig.tried.saving.retry == 0.05


def test_a_save_tells_how_fast_a_save_is(rig: Rig) -> None:
    rig.size, rig.written = 10**12, 10**12
    assert rig.tried._save("run")
    fast = rig.tried.saving.rate
    assert fast > saving.FIRST_RATE
    rig.size, rig.written = 10**20, 10**12
    assert rig.tried._save("run")
    assert rig.tried.saving.rate == fast, "little was written: it does not tell how fast one can be"
    rig.size, rig.written = 1, 0
    assert rig.tried._save("run")
    assert rig.tried.saving.rate < fast, "but how slow"


def test_files_are_saved_with_it(rig: Rig) -> None:
    rig.supervise(Options(with_files=("*.db", "/scratch/*")))
    assert rig.tried._save("run"), "the rig's checkpoint compares them"

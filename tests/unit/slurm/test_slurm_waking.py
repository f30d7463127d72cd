"""Which snapshot a run wakes, and with which files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import torpor
from tests.unit.slurm.supervisor_rig import Application, Rig, opened
from torpor.errors import NotFound, Reason, Refused, RestoreFailed, RestoreRefused, StoreError
from torpor.image import Tree
from torpor.store import SnapshotInfo
from torpor_slurm import job_directory
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options

NEW, OLD = (SnapshotInfo(f"2026112{day}-000000000-aaaaaa", "", "tree") for day in (4, 3))
CHANGED = RestoreRefused("no", [Reason("/data", "it was changed since", "put it back", changed="/data")])
MISSING = RestoreRefused("no", [Reason("/lib", "it is gone", "put it back"), *CHANGED.reasons])


class Waking:
    """Restores that end as they are told to."""

    def __init__(self, rig: Rig, outcomes: dict[str, Exception | None]) -> None:
        self.outcomes = outcomes
        self.tried: list[tuple[str, str]] = []
        rig.tried.here.found = [NEW, OLD]
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
    assert rig.wake() is rig.app
    assert waking.tried == [(NEW.id, "as-they-were")]


@pytest.mark.parametrize("error", [MISSING, RestoreFailed("a step failed"), NotFound("it is gone")])
def test_an_older_snapshot_is_woken_when_the_newest_cannot_be(rig: Rig, error: Exception) -> None:
    waking = Waking(rig, {NEW.id: error, OLD.id: None})
    assert rig.wake() is rig.app
    assert [id for id, _ in waking.tried] == [NEW.id, OLD.id]


def test_what_was_not_woken_is_told_when_another_is(rig: Rig) -> None:
    Waking(rig, {NEW.id: RestoreFailed("a step failed"), OLD.id: None})
    assert rig.wake() is rig.app
    assert rig.tried.here.notes == [f"snapshot {NEW.id} cannot be woken on n1: a step failed"]
    assert f"snapshot {NEW.id} was not woken: a step failed" in rig.log
    assert f"woke snapshot {OLD.id}" in rig.log


def test_what_was_not_woken_is_told_when_none_is(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    third = SnapshotInfo("20261122-000000000-aaaaaa", "", "tree")
    waking = Waking(rig, {NEW.id: RestoreFailed("new"), OLD.id: RestoreFailed("old"), third.id: RestoreFailed("third")})
    rig.tried.here.found = [NEW, OLD, third]
    with pytest.raises(RestoreFailed, match="third"):
        rig.wake()
    assert len(waking.tried) == 3
    assert capfd.readouterr().err.splitlines() == [
        f"torpor: snapshot {one.id} cannot be woken on n1: {why}" for one, why in ((NEW, "new"), (OLD, "old"))
    ]


@pytest.mark.parametrize(("choice", "tries"), [("older", 2), ("stop", 1)])
def test_when_none_can_be_woken_it_is_not_begun_anew(rig: Rig, choice: Any, tries: int) -> None:
    rig.supervise(Options(on_refused=choice))
    waking = Waking(rig, {NEW.id: MISSING, OLD.id: MISSING})
    with pytest.raises(RestoreRefused):
        rig.tried._wake()
    assert len(waking.tried) == tries


def test_it_begins_anew_only_where_that_is_chosen(rig: Rig) -> None:
    rig.supervise(Options(on_refused="anew"))
    waking = Waking(rig, {NEW.id: MISSING, OLD.id: MISSING})
    assert rig.tried._wake() is None
    assert len(waking.tried) == 2
    assert "begins anew" in rig.tried.here.notes[-1]


def test_a_store_that_cannot_be_read_is_no_reason_to_take_an_older_one(rig: Rig) -> None:
    rig.supervise(Options(on_refused="anew"))
    Waking(rig, {NEW.id: StoreError("stale")})
    with pytest.raises(StoreError):
        rig.tried._wake()


def test_a_later_run_that_begins_meanwhile_goes_on(rig: Rig) -> None:
    Waking(rig, {NEW.id: None})
    JobDirectory(rig.directory.path.parents[1], "12", "c").begin(1, "n2", 2.0)
    with pytest.raises(Refused, match="a later run of it has begun"):
        rig.tried._wake()


def grown(rig: Rig, tmp_path: Path) -> Path:
    """An output file that has grown since."""
    output = tmp_path / "output"
    output.write_bytes(b"onetwo")
    image = Tree()
    kept = image.descriptions.add(flags=os.O_WRONLY | os.O_APPEND)
    kept.file.path, kept.file.size, kept.file.ino = bytes(output), 3, output.stat().st_ino
    rig.monkeypatch.setattr(rig.directory.store, "open", lambda _: opened(image))
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


@pytest.mark.parametrize("files", ["as-they-are", "rolled-back"])
def test_what_becomes_of_files_is_chosen_by_an_option(rig: Rig, files: Any) -> None:
    rig.supervise(Options(files=files))
    waking = Waking(rig, {NEW.id: None})
    rig.tried._wake()
    assert waking.tried == [(NEW.id, files)]


def test_files_are_taken_as_they_are_in_the_run_that_was_asked_for(rig: Rig) -> None:
    rig.directory.update_state(phase="left")
    directory = job_directory.requeue(rig.directory.path.parents[1], "12", "as-they-are")
    assert (directory.path, rig.requeued) == (rig.directory.path, ["12"])
    assert [rig.directory.requested_files(run) for run in range(3)] == [None, "as-they-are", None]
    rig.directory.request_files(1, "rolled-back")
    assert rig.directory.requested_files(1) == "rolled-back"
    rig.directory.request_files(1, "as-they-are")
    rig.tried.allocation = replace(rig.allocation, restarts=1)
    waking = Waking(rig, {NEW.id: None})
    rig.tried._wake()
    assert waking.tried == [(NEW.id, "as-they-are")]
    job_directory.requeue(rig.directory.path.parents[1], "12", "as-they-were")
    assert rig.directory.requested_files(1) is None
    with pytest.raises(NotFound, match="there is no job 13"):
        job_directory.requeue(rig.directory.path.parents[1], "13", "as-they-are")
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

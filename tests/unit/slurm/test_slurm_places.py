"""Which of a script's commands a `torpor run` has, in the first run of the job and in later ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.errors import Refused, StoreError
from torpor_slurm import places
from torpor_slurm.job_directory import RUN_TAG, JobDirectory

A, B = ["./prepare"], ["./simulate", "--steps", "9"]


class Script:
    """The commands of a job's script, in one run of it."""

    def __init__(self, base: Path, restarts: int) -> None:
        self.root, self.restarts = JobDirectory(base, "12", "c"), restarts
        self.notes: list[str] = []

    def begin(self, command: list[str]) -> JobDirectory:
        """Begin a command, or pass it by; where it has its place."""
        found = places.find(self.root, self.restarts, command)
        self.notes.append(found.note)
        run = (self.restarts, "n1", float(self.restarts))
        if found.directory.finished:
            found.directory.pass_by(*run)
        else:
            found.directory.begin(*run, command)
        return found.directory

    def finish(self, *commands: list[str]) -> None:
        for command in commands:
            self.begin(command).finish(self.restarts, 0)


def test_the_first_command_has_the_jobs_own_directory(tmp_path: Path) -> None:
    script = Script(tmp_path, 0)
    assert script.begin(A).path == tmp_path / "slurm/c-12"
    assert script.root.places()[0].command == A


def test_each_command_is_found_again_in_the_next_run(tmp_path: Path) -> None:
    first = Script(tmp_path, 0)
    first.finish(A)
    place = first.begin(B)
    with place.store.writer("tree", {RUN_TAG: "0"}) as writer:
        snapshot = writer.publish(b"", "")
    second = Script(tmp_path, 1)
    assert second.begin(A).finished
    found = places.find(second.root, 1, B)
    assert found.directory.path == place.path == tmp_path / "slurm/c-12/then/2"
    assert [one.id for one in found.directory.begin(1, "n2", 1.0, B)] == [snapshot.id]
    assert second.root.store.snapshots() == [], "the first one's store is another"
    assert [*first.notes, *second.notes] == [""] * 3


def test_one_that_the_script_skips_is_not_taken_for_the_next(tmp_path: Path) -> None:
    """`[ -e result ] || torpor run -- ./prepare`."""
    first = Script(tmp_path, 0)
    first.finish(A)
    place = first.begin(B)
    assert Script(tmp_path, 1).begin(B).path == place.path


def test_a_finished_command_with_other_words_is_another(tmp_path: Path) -> None:
    """Though it is the same program: `python second.py` after `python first.py`, which the script now skips."""
    Script(tmp_path, 0).finish(["python", "first.py"])
    script = Script(tmp_path, 1)
    assert script.begin(["python", "second.py"]).place == 2
    assert script.notes == [""]


def test_a_command_whose_words_change_from_run_to_run_goes_on(tmp_path: Path) -> None:
    place = Script(tmp_path, 0).begin(["/a/app", "on n1"])
    later = Script(tmp_path, 1)
    assert later.begin(["/b/app", "on n2"]).path == place.path
    assert later.notes == [
        "`/a/app 'on n1'` goes on, as an earlier run of the job has begun it: this run's script has `/b/app 'on n2'`"
    ]


def test_a_script_that_was_changed_is_told(tmp_path: Path) -> None:
    Script(tmp_path, 0).begin(A)
    later = Script(tmp_path, 1)
    assert later.begin(B).place == 2
    assert "earlier runs of the job had `./prepare`: was the script changed?" in later.notes[0]


def test_while_one_runs_or_leaves_no_other_begins(tmp_path: Path) -> None:
    script = Script(tmp_path, 0)
    place = script.begin(A)
    with pytest.raises(Refused, match="it has a supervisor already"):
        script.begin(B)
    place.update_state(run=0, phase="left")
    with pytest.raises(Refused, match=r"\./simulate is not run: .* it has been saved"):
        script.begin(B)
    later = Script(tmp_path, 1)
    assert later.begin(A).path == place.path
    with pytest.raises(Refused, match="it has a supervisor already"):
        later.begin(B)


def test_after_one_that_was_ended_by_hand_the_next_begins(tmp_path: Path) -> None:
    script = Script(tmp_path, 0)
    script.begin(A).end(0, -9)
    assert script.begin(B).place == 2
    later = Script(tmp_path, 1)
    assert later.begin(A).place == 1
    assert later.root.command == A, "and it is begun again, since it has not finished"


def test_a_turn_that_its_host_lost_in_a_crash_changes_nothing(tmp_path: Path) -> None:
    first = Script(tmp_path, 0).begin(A)
    with first.store.writer("tree", {RUN_TAG: "0"}) as writer:
        snapshot = writer.publish(b"", "")
    (first.path / "turns/1").touch()
    assert [one.id for one in first.at(1).begin(2, "n1", 2.0, A)] == [snapshot.id]


def test_a_turn_that_cannot_be_written_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(tmp_path, 0)

    def full(self: JobDirectory, name: str, *_: object, **__: object) -> None:
        if name.startswith("turns"):
            raise StoreError("full")

    with monkeypatch.context() as patch:
        patch.setattr(JobDirectory, "_write", full)
        with pytest.raises(StoreError):
            script.begin(A)
    assert script.begin(A).place == 1


def test_a_later_run_shuts_out_every_command(tmp_path: Path) -> None:
    first = Script(tmp_path, 0)
    first.finish(A)
    running = first.begin(B)
    assert not running.is_fenced(0)
    Script(tmp_path, 1).begin(A)
    assert running.is_fenced(0), "although only the first command was passed by"
    running.finish(0, 0)
    with pytest.raises(Refused, match="it has a supervisor already"):
        running.at(3).begin(0, "n1", 1.0, ["./last"])  # of the start of a job the controller tells the newest

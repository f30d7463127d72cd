"""What Slurm's commands say is read, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor.errors import NotFound
from torpor_slurm import controller
from torpor_slurm.controller import JobRecord, SlurmError


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error", LINE.replace("Restarts=0", "Restarts=x")])
def test_what_is_no_job_is_not_guessed_at(line: str) -> None:
    with pytest.raises(SlurmError):
        JobRecord.parse(line)


def test_a_command_that_is_not_there_or_fails_says_so() -> None:
    with pytest.raises(NotFound, match="there is no torpor-no-such-program here"):
        controller.call(["torpor-no-such-program"])
    with pytest.raises(SlurmError, match="sh -c failed: not today"):
        controller.call(["sh", "-c", "echo not today >&2; exit 3"])


def test_a_command_that_cannot_be_started_is_as_one_that_fails(tmp_path: Path) -> None:
    (tmp_path / "nonsense").touch(0o755)
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (("nonsense", "Exec format error"), ("loop", "Too many levels of symbolic links")):
        with pytest.raises(SlurmError, match=f"{name} cannot be started: {why}"):
            controller.call([str(tmp_path / name)])


def test_the_states_of_many_jobs_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\ncase $4 in --jobs=1,2) echo 1 RUNNING;; *) echo Invalid job id >&2; exit 1;; esac\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert controller.states(["1", "2"]) == {"1": "RUNNING"}
    assert controller.states(["2"]) == {}
    assert controller.states([]) == {}

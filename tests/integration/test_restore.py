"""Restores as an ordinary user and as root: the right ids, failures that leave nothing, deaths at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("restore_actor.py")


@pytest.mark.parametrize(
    "deed",
    [
        "same_ids",
        "pids_taken_meanwhile",
        "again_and_again",
        "failing_step",
        "failing_checkpoint",
        "another_tree_than_saved",
        "failing_verification",
        "killed_at_every_stage",
        "another_kernels_vdso",
        "some_threads_first",
        "killed_job",
        "explained",
    ],
)
def test_restore(as_user: User, deed: str) -> None:
    done = as_user.run([BIN / "python", ACTOR, deed])
    assert done.stdout == "done\n", done.stderr

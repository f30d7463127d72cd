"""Restores as an ordinary user and as root: the right ids, failures that leave nothing, deaths at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("restore_actor.py")


BY_EACH = ("same_ids", "pids_taken_meanwhile", "again_and_again", "failing_step", "killed_at_every_stage", "killed_job")
BY_ANYBODY = (
    "failing_checkpoint",
    "another_tree_than_saved",
    "failing_verification",
    "another_kernels_vdso",
    "some_threads_first",
    "explained",
)
"""What goes the same way whoever does it: who is root or not is tried in the long run."""


@pytest.mark.parametrize("deed", BY_EACH)
def test_restore(as_user: User, deed: str) -> None:
    act(as_user, deed)


@pytest.mark.parametrize("deed", BY_ANYBODY)
def test_restore_of_ones_own(ordinary_account: User, deed: str) -> None:
    act(ordinary_account, deed)


@pytest.mark.soak
@pytest.mark.parametrize("deed", BY_ANYBODY)
def test_restore_by_root(root_account: User, deed: str) -> None:
    act(root_account, deed)


def act(user: User, deed: str) -> None:
    done = user.run([BIN / "python", ACTOR, deed])
    assert done.stdout == "done\n", done.stderr

"""Two threads of one process save and wake at the same time (docs/python.md), as a user and as root."""

from __future__ import annotations

from pathlib import Path

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("threads_actor.py")


def test_two_trees_are_saved_and_woken_at_a_time(as_user: User) -> None:
    done = as_user.run([BIN / "python", ACTOR], timeout=170)
    assert done.stdout == "done\n", done.stderr

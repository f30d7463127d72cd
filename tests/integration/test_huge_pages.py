"""A program keeps its huge pages through a series of checkpoints, also those that it writes all the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import BIN, User


def test_they_are_there_after_each_checkpoint(as_user: User) -> None:
    done = as_user.run([BIN / "python", Path(__file__).parent / "huge_actor.py"])
    if done.stdout == "unavailable\n":
        pytest.skip("the host gives no huge pages, or does not make them out of small ones (MADV_COLLAPSE)")
    assert done.stdout == "done\n", done.stderr

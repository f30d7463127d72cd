"""Images of other processors are woken here: their registers lie elsewhere in memory, and they have other features."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("elsewhere_actor.py")


@pytest.mark.parametrize("deed", ["registers", "features"])
def test_an_image_of_another_processor(as_user: User, deed: str) -> None:
    done = as_user.run([BIN / "python", ACTOR, deed])
    assert done.stdout == "done\n", done.stderr

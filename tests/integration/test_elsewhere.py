"""Images of other processors are woken here: their registers lie elsewhere in memory."""

from __future__ import annotations

from pathlib import Path

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("elsewhere_actor.py")


def test_registers_of_another_processor(as_user: User) -> None:
    done = as_user.run([BIN / "python", ACTOR])
    assert done.stdout == "done\n", done.stderr

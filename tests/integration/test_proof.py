"""What cannot be woken is not killed: each refusal of a restore is one of the checkpoint that was to end the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import BIN, User

ACTOR = Path(__file__).with_name("proof_actor.py")


@pytest.mark.parametrize(
    "deed", ["refused", "descriptors", "sockets", "taken_over", "unreadable", "nowhere_at_all", "costs"]
)
def test_proof(as_user: User, deed: str) -> None:
    done = as_user.run([BIN / "python", ACTOR, deed])
    assert done.stdout == "done\n", done.stderr

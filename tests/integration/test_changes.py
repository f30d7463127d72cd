"""What a series of checkpoints keeps of a program that does random things to its memory is what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.building import build
from tests.conformance.harness import Stage
from tests.users import BIN, User

HERE = Path(__file__).parent
CHANGES = HERE.parent / "conformance" / "victims" / "changes.c"
KINDS = ("plain", "locked", "subreaper")
"""Of processes: those of the last two are not forked, but read while they stand still."""


def compare(stage: Stage, user: User, kind: str, seed: int, rounds: int) -> None:
    program = build(CHANGES, stage.programs)
    command: list[str | Path] = [BIN / "python", HERE / "changes_actor.py", program, str(seed), kind, str(rounds)]
    done = user.run(command, timeout=150 + 2 * rounds)
    assert done.stdout.endswith("done\n"), done.stderr


def test_what_a_series_keeps_is_what_is_there(stage: Stage, as_user: User) -> None:
    compare(stage, as_user, "plain", 2, 25)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_a_series_keeps_of_what_stands_still(stage: Stage, ordinary_account: User, kind: str) -> None:
    compare(stage, ordinary_account, kind, 2, 25)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_the_same_many_times(stage: Stage, ordinary_account: User, kind: str, seed: int) -> None:
    compare(stage, ordinary_account, kind, seed, 200)

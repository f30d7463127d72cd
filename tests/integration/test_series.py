"""A series of checkpoints keeps what single ones would, although it reads only what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.building import build
from tests.conformance.harness import Stage
from tests.users import BIN, User

HERE = Path(__file__).parent
MUTATOR = HERE.parent / "conformance" / "victims" / "mutator.c"
TIMES = 12


def compare(stage: Stage, user: User, times: int, seed: str) -> None:
    program = build(MUTATOR, stage.programs)
    done = user.run([BIN / "python", HERE / "series_actor.py", program, str(times), seed], timeout=150 + 5 * times)
    assert done.stdout.endswith("done\n"), done.stderr


def test_a_series_keeps_what_single_checkpoints_keep(stage: Stage, as_user: User) -> None:
    compare(stage, as_user, TIMES, "first")


def test_what_has_come_since_the_last_one_is_kept_or_refused(as_user: User) -> None:
    done = as_user.run([BIN / "python", HERE / "series_changes.py"])
    assert done.stdout.endswith("done\n"), done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_the_same_many_times(stage: Stage, ordinary_account: User, seed: int) -> None:
    compare(stage, ordinary_account, 50, f"seed {seed}")

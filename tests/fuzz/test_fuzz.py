"""Some generated programs, the same in every run: `make fuzz` plays new ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import build
from tests.fuzz.grammar import SAVE, Step, generate, sensible
from tests.fuzz.play import BESIDE, GOOD, Outcome
from tests.fuzz.shrink import shrink
from tests.users import User

PART = 2 * BESIDE
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def player() -> Path:
    """The player, where every user may run it."""
    return build()


@pytest.mark.parametrize("seed", range(0, 2 * PART, PART))
def test_what_is_woken_sees_what_its_twin_sees(as_user: User, player: Path, seed: int) -> None:
    first = seed + (1_000_000 if as_user.is_root else 0)
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.fuzz.play",
        as_user.tmp / "play",
        player,
        str(first),
        str(PART),
    ]
    ran = as_user.run(words, timeout=170, cwd=ROOT)
    outcomes = [Outcome(**json.loads(line)) for line in ran.stdout.splitlines()]
    assert [f"seed {one.seed}: {one.words}" for one in outcomes if one.kind not in GOOD] == []
    assert len(outcomes) == PART, ran.stderr
    assert sum(one.wakes for one in outcomes) > PART // 3


def test_two_pid_namespaces_build_the_player_at_once() -> None:
    """Test workers do: the two processes have the same PID, and neither may take the other's draft."""
    words = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-current-user"]), "--pid", "--fork"]
    words += [sys.executable, "-c", "import os; from tests.fuzz.__main__ import build; build(); print(os.getpid())"]
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(one.communicate()[0], one.returncode) for one in both] == [("1\n", 0)] * 2


def test_a_program_is_the_same_for_a_seed_and_calls_upon_nobody_who_is_gone() -> None:
    for seed in range(200):
        steps = generate(seed)
        assert steps == generate(seed)
        assert sensible(steps)[: len(steps)] == steps
        assert any(step.verb == SAVE for step in steps)
        assert [Step.read(str(step)) for step in steps] == steps


def test_a_failing_program_is_made_smaller() -> None:
    steps = [Step(0, "map", (number,)) for number in range(40)]
    assert shrink(steps, lambda some: {steps[3], steps[31]} <= set(some)) == [steps[3], steps[31]]

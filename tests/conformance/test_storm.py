"""Trees that never rest are frozen at any moment, many times, and neither lose a process nor hurt one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.harness import Actor, Job, Stage, Subject, restored, wait_until

STORMS = [
    # Chains take so many PIDs of the host that others beside them may get none.
    pytest.param(path, id=path.stem, marks=[pytest.mark.alone] if path.stem == "chains" else [])
    for path in sorted((Path(__file__).parent / "storms").glob("*.c"))
]
OFTEN = [1, pytest.param(20, marks=pytest.mark.soak)]
TIMES = {"storm": {"run": 25, "kill": 5}, "chains": {"run": 6, "kill": 2}}


def gone(pids: set[int]) -> bool:
    """Whether none of these is left but as somebody else's zombie."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if observe.status(pid)["State"][0] not in "ZX":
                return False
    return True


@pytest.mark.parametrize("rounds", OFTEN)
@pytest.mark.parametrize("who", ["user", "root"])
@pytest.mark.parametrize("storm", STORMS)
def test_left_running(stage: Stage, storm: Path, who: str, rounds: int, request: pytest.FixtureRequest) -> None:
    """Many checkpoints, whatever the tree is at: each is taken, and the tree runs on."""
    actor: Actor = request.getfixturevalue(who)
    with stage.play(storm, actor) as subject:
        subject.wait_ready()
        for _ in range(TIMES[storm.stem]["run"] * rounds):
            stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "run")
        subject.go()
        subject.judged()
        assert subject.exited() == 0, subject.output()


@pytest.mark.parametrize("rounds", OFTEN)
@pytest.mark.parametrize("who", ["user", "root"])
@pytest.mark.parametrize("storm", STORMS)
def test_killed_and_restored(stage: Stage, storm: Path, who: str, rounds: int, request: pytest.FixtureRequest) -> None:
    """Some times killed and woken, whatever it was at."""
    actor: Actor = request.getfixturevalue(who)
    with stage.play(storm, actor) as subject:
        subject.wait_ready()
        for _ in range(TIMES[storm.stem]["kill"] * rounds):
            job = again(stage, subject)
        subject.go()
        subject.judged()
        assert job.status() == 0, subject.output()


def again(stage: Stage, subject: Subject) -> Job:
    """Checkpoint, kill, wake."""
    pids = set(observe.descendants(subject.root()))
    snapshot = stage.driver(subject.actor).checkpoint(subject.root(), subject.directory / "store", "kill")
    wait_until(lambda: gone(pids), "the end of the storm")
    return restored(stage, subject, snapshot)

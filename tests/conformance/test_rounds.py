"""Round after round of checkpoint, kill and restore: nothing fails, and nothing is left by any of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.harness import Actor, Job, Stage, Subject, reborn, reborn_alike, wait_until
from tests.conformance.test_conformance import ONLY_ROOT, PASSING, PROGRAMS

HERE = Path(__file__).parent
FEW = 5
IN_ALL = 1000
"""Rounds of `make soak`, over all programs."""
MINE = [source for source in PROGRAMS if source.stem not in ONLY_ROOT]


def resources(stage: Stage, actor: Actor) -> tuple[int, int, int]:
    """Processes and descriptors of the one who checkpoints and restores, and the mounts of us all."""
    driver = stage.driver(actor).process.pid
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    return len(list(observe.descendants(driver))), len(os.listdir(f"/proc/{driver}/fd")), mounts


def rounds(stage: Stage, actor: Actor, source: Path, count: int) -> None:
    """Kill and wake a program `count` times, with a look around after each."""
    idle = resources(stage, actor)
    again = reborn if source.stem in PASSING else reborn_alike
    with stage.play(source, actor) as subject:
        subject.wait_ready()
        awake = resources(stage, actor)
        job = None
        for number in range(count):
            job, before = again(stage, subject), job
            if before:
                before.talk.close()
            if number == 0:
                awake = settled(stage, actor, subject)
            wait_until(lambda: resources(stage, actor) == awake, f"what round {number} has left to be gone")  # noqa: B023
        subject.go()
        subject.judged()
        assert isinstance(job, Job)
        assert job.status() == 0, subject.output()
        job.talk.close()
    wait_until(lambda: resources(stage, actor) == idle, "everything to be as before")


def settled(stage: Stage, actor: Actor, subject: Subject) -> tuple[int, int, int]:
    """What there is while one restored job runs: its processes, its capsule's, and who waits for it."""
    subject.settled()
    looks = [resources(stage, actor)]

    def at_rest() -> bool:
        looks.append(resources(stage, actor))
        return looks[-1] == looks[-2]

    wait_until(at_rest, "the driver to come to rest")
    return looks[-1]


def test_a_few_rounds(stage: Stage, user: Actor) -> None:
    """A tree of processes, five times."""
    rounds(stage, user, HERE / "programs" / "tree.py", FEW)


@pytest.mark.soak
@pytest.mark.parametrize("source", MINE, ids=lambda path: path.name)
def test_a_thousand_rounds(stage: Stage, user: Actor, source: Path) -> None:
    """Every program as often as its share of a thousand."""
    rounds(stage, user, source, -(-IN_ALL // len(MINE)))

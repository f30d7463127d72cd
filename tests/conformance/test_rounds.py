"""Round after round of checkpoint, kill and restore: nothing fails, and nothing is left by any of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from pprint import pformat

import pytest

from tests.conformance import observe
from tests.conformance.building import named
from tests.conformance.harness import Actor, Failed, Stage, reborn, reborn_alike, wait_until
from tests.conformance.test_conformance import ONLY_ROOT, PASSING, SOURCES

FEW = 5
IN_ALL = 1000
"""Rounds of `make soak`, over all programs."""
MINE = [source for source in SOURCES if source.stem not in ONLY_ROOT]


def resources(stage: Stage, actor: Actor) -> list[str]:
    """The processes and descriptors of the one who checkpoints and restores, and the mounts of us all."""
    driver = stage.driver(actor).process.pid
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):  # one ends at this moment: look again
        for pid in observe.descendants(driver):
            status = observe.status(pid)
            found.append(f"{status['Name']} {status['State']}")
    found += [os.readlink(path).rstrip("0123456789]") for path in Path(f"/proc/{driver}/fd").iterdir()]
    return sorted([*found, *Path("/proc/self/mountinfo").read_text().splitlines()])


def wait_for(stage: Stage, actor: Actor, wanted: list[str], when: str) -> None:
    """Wait until there is what there was, and nothing more."""
    try:
        wait_until(lambda: kinds(resources(stage, actor)) == kinds(wanted), f"what is left {when} to be gone")
    except Failed as failure:
        raise Failed(f"{failure}:\n{pformat(resources(stage, actor))}\ninstead of\n{pformat(wanted)}") from None


def kinds(found: list[str]) -> list[str]:
    """The same without what processes are at."""
    return sorted(line.split(" ")[0] if line.endswith(")") else line for line in found)


def rounds(stage: Stage, actor: Actor, source: Path, count: int) -> None:
    """Kill and wake a program `count` times, with a look around after each."""
    idle = resources(stage, actor)
    again = reborn if source.stem in PASSING else reborn_alike
    with stage.play(source, actor) as subject:
        subject.wait_ready()
        job = again(stage, subject)
        awake = settled(stage, actor)
        for number in range(1, count):
            before, job = job, again(stage, subject)
            before.talk.close()
            wait_for(stage, actor, awake, f"after round {number}")
        subject.go()
        subject.judged()
        assert job.status() == 0, subject.output()
    wait_for(stage, actor, idle, "in the end")


def settled(stage: Stage, actor: Actor) -> list[str]:
    """What there is while one restored job runs: its processes, its capsule's, and who waits for it."""
    looks = [resources(stage, actor)]

    def at_rest() -> bool:
        looks.append(resources(stage, actor))
        return kinds(looks[-1]) == kinds(looks[-2])

    wait_until(at_rest, "the driver to come to rest")
    return looks[-1]


def test_a_few_rounds(stage: Stage, user: Actor) -> None:
    """A tree of processes, five times."""
    rounds(stage, user, named("tree.py"), FEW)


@pytest.mark.soak
@pytest.mark.parametrize("source", MINE, ids=lambda path: path.name)
def test_a_thousand_rounds(stage: Stage, user: Actor, source: Path) -> None:
    """Every program as often as its share of a thousand."""
    rounds(stage, user, source, -(-IN_ALL // len(MINE)))

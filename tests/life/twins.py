"""Compares what a command gives in each of its lives: undisturbed, run, woken, woken twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.life.life import Ended, Life, Refused
from tests.users import User

ROOTS_WAYS = ("run", "run native", "run native native")
USERS_WAYS = ("run", "run capsule", "run capsule capsule")
"""How a job is started, and then woken, one after the other."""
SLOWER = 6.0
"""How many times what the twin took a job may take, on a machine that has other things to do."""
LEAST = 60.0
"""Seconds that a job may take at least."""

Outcomes = dict[str, str]
"""What a command gave, by names: of one test each, or of the whole output."""


def whole(directory: Path, output: str, status: int) -> Outcomes:
    """The outcomes of any command: what it wrote, and its exit status."""
    del directory
    return {"output": output, "status": str(status)}


@dataclass
class Lived:
    """What came of one life."""

    ways: str
    outcomes: Outcomes
    seconds: float
    woken: int = 0
    ended: bool = True
    """By itself."""
    refusals: list[str] = field(default_factory=list)
    said: str = ""


def live(
    user: User,
    command: Sequence[str | Path],
    ways: str,
    seconds: float,
    read: Callable[[Path, str, int], Outcomes] = whole,
    env: dict[str, str] | None = None,
) -> Lived:
    """One life.

    Args:
        user: who lives it, in a new directory of their own.
        command: its words.
        ways: "" for the twin, else of ROOTS_WAYS or USERS_WAYS.
        seconds: how long the twin took. It is woken at equal parts of that.
        read: makes outcomes from the directory, the output and the exit status.
        env: variables besides the user's own.
    """
    start, *wakes = ways.split() or [""]
    directory = user.tmp / "in"
    for path in (directory, user.tmp / "store"):
        if path.exists():
            subprocess.run(["chmod", "-R", "u+rwx", path], check=True)
            shutil.rmtree(path)
    directory.mkdir()
    user.own(directory)
    began = time.monotonic()
    life = Life(user, command, directory, run=bool(start), env=env)
    lived = Lived(ways, {}, 0)
    try:
        for number, way in enumerate(wakes, 1):
            moment = began + number * seconds / (len(wakes) + 1)
            try:
                life.end(max(0, moment - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                pass
            try:
                life.wake(way)
            except (Ended, Refused):
                break
            lived.woken += 1
        try:
            status = life.end(max(LEAST, SLOWER * seconds))
        except subprocess.TimeoutExpired:
            status, lived.ended = -signal.SIGKILL, False
    finally:
        life.kill()
    lived.outcomes = read(directory, life.output, status)
    lived.seconds, lived.refusals, lived.said = time.monotonic() - began, life.refusals, life.said
    return lived


def differences(twins: Sequence[Lived], other: Lived) -> dict[str, tuple[str, str]]:
    """What another life gave otherwise than the undisturbed twin, less what two twins did not have alike."""
    first = twins[0].outcomes
    unsure = {
        name for twin in twins[1:] for name in twin.outcomes | first if twin.outcomes.get(name) != first.get(name)
    }
    return {
        name: (first.get(name, "-"), other.outcomes.get(name, "-"))
        for name in sorted(first.keys() | other.outcomes.keys())
        if name not in unsure and first.get(name) != other.outcomes.get(name)
    }

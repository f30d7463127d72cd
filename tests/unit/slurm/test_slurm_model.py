"""The table of states and events: whatever happens in which state, no line of a job's output is lost or doubled.

Each cell of STATES x EVENTS is a whole life of a job, which is preempted once besides, in the model of slurm_model.py.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_model import STEPS, Answer, World

STATES = (
    *("begins", "starting", "running"),
    *("saving to run", "in the middle of a save to run", "saved to run"),
    *("saving to kill", "in the middle of a save to kill", "saved to kill", "leaving", "requeued"),
    *("waking", "woken", "ending", "ended"),
)


def away(what: str, seconds: float) -> Callable[[World], None]:
    def event(world: World) -> None:
        world.away_until[what] = world.now + seconds

    return event


def hear(number: int) -> Callable[[World], None]:
    return lambda world: world.pending.append(number)


def die(world: World) -> None:
    if world.app is not None and world.app.code is None:
        world.app.send_signal(signal.SIGKILL)


def fail(world: World) -> None:
    world.failing = 2


def nears_its_limit(world: World) -> None:
    """Slurm sends --signal=B:USR1@90."""
    if world.state == "RUNNING" and world.preempted is None:
        world.end = world.now + 90
        run = world.run
        world.pending.append(signal.SIGUSR1)

        def limit() -> None:
            if world.run == run:
                world.time_limit()

        world.at(90, limit)


KIND = {
    "preempted": World.preempt,
    "preempted at once": lambda world: world.preempt(0),
    "requeued": World.requeue,
    "near its limit": nears_its_limit,
    "at its limit": World.time_limit,
    "SIGCONT": hear(signal.SIGCONT),
    "suspended": lambda world: world.suspend(1000),
    "controller away": away("controller", 20),
    "store away": away("store", 10),
    "saves fail": fail,
}
"""Events after which nobody has to help, and no work is done again."""
UNKIND = {
    "SIGTERM": hear(signal.SIGTERM),
    "SIGUSR1": hear(signal.SIGUSR1),
    "cancelled": World.cancel,
    "node lost": World.lose_node,
    "killed": World.kill,
    "application killed": die,
}
"""Events after which it may have to be requeued by hand, or goes on from its last save."""
EVENTS = {**KIND, **UNKIND}


def live(folder: Path, answer: Answer, cgroups: bool, plan: dict[str, list[str]], *, doubted: bool) -> World:
    """The life of a job to which this happens; what it has written is whole in the end.

    Args:
        folder: for its files.
        answer: what the application does when it is signalled.
        cgroups: whether Slurm spares the application.
        plan: what happens when a state is reached.
        doubted: the application may have ended by itself and begin in its own way: what it has written before stays.
    """
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        world = World(folder, patch, answer=answer, cgroups=cgroups, every=15)
        world.plan = {state: [EVENTS[name] for name in names] for state, names in plan.items()}
        try:
            world.live()
            lines = world.path.read_text().split()
            assert (lines[-STEPS:] if doubted else lines) == [str(step) for step in range(STEPS)]
        except BaseException as error:
            raise AssertionError(f"{answer}, cgroups {cgroups}, {plan}: {world.reached}, {world.helped}") from error
        finally:
            os.close(world.out)
    return world


VARIANTS: list[tuple[Answer, bool]] = [
    (answer, cgroups) for answer in ("dies", "goes on", "ends with 0", "ends with 3") for cgroups in (True, False)
]


def walk(folder: Path, answer: Answer, cgroups: bool, happens: list[tuple[str, str]]) -> None:
    """A job that is preempted once, and to which this happens as well: event by state."""
    names = {event for event, _ in happens}
    if answer.startswith("ends") and names & {"SIGTERM", "SIGUSR1"}:
        return  # its user has told it to end, and so it does: test_slurm_supervisor_leaving.py
    plan: dict[str, list[str]] = {}
    for event, state in (*happens, ("preempted", "in the middle of a save to run")):
        plan.setdefault(state, []).append(event)
    at_its_end = bool({state for _, state in happens} & {"ending", "ended", "leaving"})
    doubted = "requeued" in names and (at_its_end or (not cgroups and answer.startswith("ends")))
    world = live(folder, answer, cgroups, plan, doubted=doubted)
    # One that cannot be saved, or has no time left, is told to do what it can, and may end.
    kind = names <= {*KIND} and (
        len(happens) == 1 or not names & {"near its limit", "at its limit", "saves fail", "store away"}
    )
    if cgroups and kind and not at_its_end:
        assert (world.helped, world.done) == ([], STEPS), (answer, happens, world.reached)


@pytest.mark.parametrize("event", EVENTS)
def test_nothing_is_lost_or_doubled_in_any_state(tmp_path: Path, event: str) -> None:
    offset = list(EVENTS).index(event)
    for number, state in enumerate(STATES):
        walk(tmp_path / str(number), *VARIANTS[(offset + number) % len(VARIANTS)], [(event, state)])


@pytest.mark.soak
@pytest.mark.parametrize("event", EVENTS)
def test_nothing_is_lost_or_doubled_whatever_the_application_does(tmp_path: Path, event: str) -> None:
    for number, (state, variant) in enumerate(product(STATES, VARIANTS)):
        walk(tmp_path / str(number), *variant, [(event, state)])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_or_doubled_by_three_events(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    for number in range(60):
        happens = [(chosen.choice([*EVENTS]), chosen.choice(STATES)) for _ in range(3)]
        walk(tmp_path / str(number), *chosen.choice(VARIANTS), happens)

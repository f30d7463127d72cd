"""Every program of programs/, in every way it can be frozen and woken.

A program is one behaviour. It judges itself; the harness adds what is seen from outside: the tree is word for
word as it was, the exit status arrives, nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import PROGRAMS
from tests.conformance.harness import (
    Actor,
    Stage,
    Subject,
    alive,
    in_capsule,
    reborn,
    reborn_alike,
    unchanged,
    wait_until,
)
from tests.conformance.short_walks import short_rounds

SOURCES = sorted(path for path in PROGRAMS.glob("*/*") if path.suffix in (".c", ".py", ".sh"))
PASSING = {"faults", "timeouts", "threading_py", "transfers"}
"""Programs whose threads end or go on while one looks: they are not at rest, and judge for themselves what is right."""
ONLY_ROOT = {"chroots", "credentials", "seccomp_filters"}
"""Programs that begin as root and become somebody else, or that only root keeps."""
ONLY_CAPSULE = {"locked_kinds", "message_queues", "sparse", "system_v", "system_v_waits"}
"""Programs with System V objects or message queues, which an ordinary user wakes in a namespace only."""
SPINNING = {"amx", "clocks", "registers", "rseq"}
"""Programs with threads that never sleep: they are to be met at any instruction."""
STOPS_ARE_NEWS = {"interactive", "transfers"}
"""Programs that act on the stops of their children: a shell takes the terminal back, script(1) stops too. And one whose
calls the kernel itself ends then."""

behaviour = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)


def play(stage: Stage, source: Path, actor: Actor, *, own_session: bool = True) -> AbstractContextManager[Subject]:
    """Start a program."""
    return stage.play(source, actor, rests=source.stem not in SPINNING, own_session=own_session)


def finish(subject: Subject) -> None:
    """Let a program go on that was not killed, and see that it is content and exits so."""
    subject.go()
    subject.judged()
    assert subject.exited() == 0, subject.output()


@behaviour
def test_undisturbed(stage: Stage, user: Actor, source: Path, request: pytest.FixtureRequest) -> None:
    """The program itself is right: it is content when nothing happens to it."""
    actor = request.getfixturevalue("root") if source.stem in ONLY_ROOT else user
    with play(stage, source, actor) as subject:
        finish(subject.wait_ready())


@behaviour
def test_stopped_and_continued(stage: Stage, user: Actor, source: Path, request: pytest.FixtureRequest) -> None:
    """The program copes with what the kernel itself does to one that is stopped and continued."""
    if source.stem in STOPS_ARE_NEWS:
        pytest.skip("it does not cope with that")
    actor = request.getfixturevalue("root") if source.stem in ONLY_ROOT else user
    with play(stage, source, actor) as subject:
        subject.wait_ready()
        if source.stem not in PASSING:
            subject.settled()
        running = [pid for pid in observe.descendants(subject.pid) if observe.status(pid)["State"][0] not in "TZ"]
        begun = time.monotonic()
        for pid in running:
            os.kill(pid, signal.SIGSTOP)
        for pid in running:
            wait_until(lambda: observe.status(pid)["State"][0] == "T", f"{pid} to stop")  # noqa: B023
        for pid in reversed(running):
            os.kill(pid, signal.SIGCONT)
        subject.frozen += time.monotonic() - begun
        finish(subject)


@behaviour
@pytest.mark.parametrize("who", ["user", "root"])
def test_left_running(stage: Stage, source: Path, who: str, request: pytest.FixtureRequest) -> None:
    """A checkpoint that lets the target run on changes nothing of it."""
    if source.stem in ONLY_ROOT and who != "root":
        pytest.skip("begins as root")
    actor = request.getfixturevalue(who)
    with play(stage, source, actor) as subject:
        subject.wait_ready()
        before = {} if source.stem in PASSING else subject.settled()
        begun = time.monotonic()
        stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "run")
        subject.frozen += time.monotonic() - begun
        if source.stem not in PASSING:
            unchanged(subject, before)
        finish(subject)


EACH = [("user-capsule", 3), ("root-capsule", 1), ("root-in-place", 3)]
LATER = [("user-capsule", 1), ("root-in-place", 1), ("user-walk", 1), ("user-walk", 3), ("user-executes", 3)]
"""Where a program is woken, and how often. Once is a part of three times, and is tried by itself where what a program
sees in the end depends on how long it was away."""
NATIVE = ("user-walk", "user-executes")
"""Without a capsule, and the second without any namespace: each process executes its program while it is blank."""
KILLED = [
    pytest.param(where, times, source, marks=[] if (where, times) in EACH or at_once else pytest.mark.soak)
    for source in SOURCES
    for where, times in EACH + LATER
    for at_once in [source.stem in PASSING and where not in NATIVE]
]


@pytest.mark.parametrize(
    ("where", "generations", "source"), KILLED, ids=lambda value: value.name if isinstance(value, Path) else str(value)
)
def test_killed_and_restored(
    stage: Stage, source: Path, where: str, generations: int, request: pytest.FixtureRequest
) -> None:
    """The program is killed, woken from its image with its old PIDs, and content; again and again."""
    if source.stem in ONLY_ROOT and not where.startswith("root"):
        pytest.skip("begins as root")
    if where in NATIVE and source.stem in ONLY_CAPSULE:
        pytest.skip("needs a namespace")
    actor = request.getfixturevalue(where.partition("-")[0])
    again = reborn if source.stem in PASSING else reborn_alike
    options: dict[str, object] = {"way": "capsule"} if where == "user-capsule" else {}
    with ExitStack() as stack:
        if where in NATIVE:
            options = {"way": "native", "executes": where == "user-executes"}
            stack.enter_context(short_rounds())
        subject = stack.enter_context(play(stage, source, actor, own_session=where != "root-in-place"))
        subject.wait_ready()
        for generation in range(generations):
            # A capsule ends with its job, and takes with it what of the job's memory was to be read.
            then = "gone" if generation == 1 and where == "root-in-place" else "kill"
            job = again(stage, subject, stack if where == "root-capsule" else None, then, **options)
            assert in_capsule(subject) == where.endswith("capsule")
        changed = stage.driver(actor).differences(subject.directory / "store")
        assert not changed or source.stem in PASSING, "woken and saved again it is not the same:\n" + "\n".join(changed)
        subject.go()
        subject.judged()
        assert job.status() == 0, subject.output()
        wait_until(lambda: not alive(job.pid), "the end of the job's process")

"""How long a checkpoint is tried again, and who is seen to lack a processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from torpor.dump import patience
from torpor.errors import Reason, Refused

SPINS = "import os; os.write(1, b'.')\nwhile True: pass"
READS = "import os; os.write(1, b'.'); os.read(0, 1)"
TIMES = len(patience.PAUSES)


def refusal(*, passing: bool) -> Refused:
    return Refused("process 7 cannot be kept", [Reason("process 7", "bytes are under way", passing=passing)])


class Act:
    """A checkpoint that is refused some times."""

    def __init__(self, times: int, *, passing: bool = True) -> None:
        self._left, self._passing = times, passing
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self._left:
            raise refusal(passing=self._passing)
        return "saved"


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a thread lacks a processor, one answer from the last short pause on, and then never; none takes time."""
    answers: list[bool] = []
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(patience, "run_on", lambda *_: answers.pop(0) if answers else False)
    return answers


def test_a_refusal_that_does_not_pass_comes_at_once() -> None:
    act = Act(1, passing=False)
    with pytest.raises(Refused):
        patience.patiently(os.getpid(), act)
    assert act.tries == 1


def test_who_does_not_read_though_nothing_hinders_it_is_not_waited_for(lacks: list[bool]) -> None:
    act = Act(TIMES + 1)
    with pytest.raises(Refused):
        patience.patiently(1, act)
    assert act.tries == TIMES + 1


def test_a_reader_without_a_processor_is_waited_for(lacks: list[bool]) -> None:
    lacks += [True, True]
    act = Act(TIMES + 2)
    assert patience.patiently(1, act) == "saved"
    assert act.tries == TIMES + 3


def test_waiting_has_an_end(lacks: list[bool]) -> None:
    lacks += [True] * 100
    act = Act(100)
    with pytest.raises(Refused):
        patience.patiently(1, act)
    assert act.tries == TIMES + len(patience.LONG_PAUSES) + 1
    assert sum(patience.PAUSES + patience.LONG_PAUSES) == pytest.approx(10.2, abs=0.1)


@contextmanager
def child(program: str) -> Iterator[int]:
    """A process that has come to what it does for good."""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout
            assert started.stdout.read(1) == b"."
            yield started.pid
        finally:
            started.kill()


def test_a_thread_that_another_keeps_from_the_processor_lacks_it() -> None:
    with child(SPINS) as greedy, child(SPINS) as modest:
        for pid in (greedy, modest):
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(modest, os.SCHED_IDLE, os.sched_param(0))
        assert patience.run_on(modest, 0.2)


def test_a_thread_that_waits_for_something_else_or_is_stopped_lacks_none() -> None:
    with child(READS) as waiting, child(SPINS) as stopped:
        os.kill(stopped, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(stopped, os.WUNTRACED)[1])
        assert not patience.run_on(stopped, 0.01)
        while patience._threads(waiting)[waiting][0] != "S":
            os.sched_yield()
        assert not patience.run_on(waiting, 0.01)

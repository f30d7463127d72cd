"""How PIDs are assigned: what is taken, and how far it is to one. The walk itself is in restorer/test_walk.py."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.remote import pid_allocation
from torpor.remote.children import forked
from torpor.remote.pid_allocation import Numbers, Pace, Walk


@given(st.integers(300, 999), st.integers(300, 999))
def test_the_distance_is_that_of_the_kernels_counting(last: int, target: int) -> None:
    numbers = Numbers(300, 1000)
    left, at = 0, last
    while (at := at + 1 if at + 1 < 1000 else 300) != target:
        left += 1
    assert numbers.left(last, target) == left


def test_which_are_assigned_in_turn() -> None:
    numbers = Numbers(300, 1000)
    assert [pid for pid in (1, 299, 300, 999, 1000) if numbers.holds(pid)] == [300, 999]
    here = pid_allocation.here()
    assert here.holds(pid_allocation.last()) or pid_allocation.last() < here.first


def test_a_pid_is_taken_while_its_process_or_its_group_is_there() -> None:
    """A group or session outlives its leader: nobody gets that PID."""
    assert pid_allocation.is_taken(os.getpid())
    command = ["sh", "-c", "sleep 1000 >/dev/null & echo $!"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout
        follower = int(leader.stdout.readline())
    try:
        assert not os.path.exists(f"/proc/{leader.pid}")
        assert pid_allocation.is_taken(leader.pid)
    finally:
        os.kill(follower, signal.SIGKILL)


def test_a_pid_that_nobody_has_is_free() -> None:
    assert not pid_allocation.is_taken(1 << 22)


def test_zombies_are_waited_for_only_while_they_may_still_go(monkeypatch: pytest.MonkeyPatch) -> None:
    child = forked(lambda: None)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    sleeps: list[float] = []

    def reap(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            os.waitpid(child, 0)

    monkeypatch.setattr("torpor.remote.pid_allocation.time.sleep", reap)
    monkeypatch.setattr(pid_allocation, "_REAPED_SECONDS", 3600.0)
    pid_allocation.wait_for_zombies([child, os.getpid(), 1 << 22])
    assert len(sleeps) == 3
    pid_allocation.wait_for_zombies([os.getpid()])
    assert len(sleeps) == 3, "who lives is not waited for"


def test_a_pace_says_how_long_and_where_to_stop() -> None:
    pace = Pace(2000.0, 4)
    assert Walk(pace, 5000).seconds == 2.5
    assert pace.near == 2 * 4 * 64


def test_no_walk_is_possible_where_no_process_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise BlockingIOError(11, os.strerror(11))

    monkeypatch.setattr(pid_allocation, "_walk", refused)
    assert pid_allocation.whole_round() is None
    with pytest.raises(OSError):
        pid_allocation.pace()


def test_a_kernel_on_which_nothing_passes_is_none_that_can_be_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pid_allocation, "_walk", lambda *_: None)
    monkeypatch.setattr(pid_allocation, "last", lambda: 500)
    monkeypatch.setattr(pid_allocation, "_TRIED_SECONDS", 0.0)
    with pytest.raises(OSError):
        pid_allocation.pace()

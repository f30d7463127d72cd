"""The end of a frozen tree: all of it, or what is left of it is said."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from torpor import procfs
from torpor.errors import CheckpointFailed
from torpor.remote import killing, ptrace
from torpor.remote.freeze import Frozen
from torpor.remote.naming import UNINTERRUPTIBLE
from torpor.remote.tracer import in_own_thread

FAMILY = """
import os, time
for _ in range(2):
    if not os.fork():
        time.sleep(1000)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process with two children, which ends with them."""
    words = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def frozen(root: int, act: Callable[[Frozen], object]) -> list[int]:
    """Freeze a tree for an act; the PIDs, in an order in which parents come first."""

    def work(_: object) -> list[int]:
        with Frozen(root, 5) as tree:
            pids = list(tree.processes)
            act(tree)
        return pids

    return in_own_thread(work)


def forbidding(monkeypatch: pytest.MonkeyPatch, when: Callable[[int, int], bool]) -> None:
    """Have kill(2) fail."""
    real = os.kill

    def kill(pid: int, sig: int) -> None:
        if when(pid, sig):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(pid, sig)

    monkeypatch.setattr(os, "kill", kill)


def test_all_have_ended_afterwards(family: subprocess.Popen[str]) -> None:
    told: list[str] = []

    def end(tree: Frozen) -> None:
        killing.check(tree.processes)
        told.extend(killing.kill(tree.processes))

    pids = frozen(family.pid, end)
    assert len(pids) == 3 and not told
    assert all(procfs.is_ending(pid, pid) for pid in pids)


def test_who_cannot_be_killed_is_found_before_anyone_is(
    family: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def third(pid: int, sig: int) -> bool:
        assert sig == 0
        seen.append(pid)
        return len(seen) == 3

    def refused(tree: Frozen) -> None:
        with (
            monkeypatch.context() as patch,
            pytest.raises(CheckpointFailed, match=r"cannot be killed: .*not permitted"),
        ):
            forbidding(patch, third)
            killing.check(tree.processes)

    assert frozen(family.pid, refused) == seen
    assert family.poll() is None


def test_one_that_was_not_killed_is_told_and_the_others_are(
    family: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def most(tree: Frozen) -> None:
        spared = list(tree.processes)[1]
        with monkeypatch.context() as patch:
            forbidding(patch, lambda pid, _: pid == spared)
            told.extend(killing.kill(tree.processes))
        assert len(told) == 1 and told[0].startswith(f"process {spared} (")
        assert told[0].endswith(") was not killed: Operation not permitted")

    pids = frozen(family.pid, most)
    assert [procfs.is_ending(pid, pid) for pid in pids] == [True, False, True]


def test_who_ends_late_is_told(family: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def late(tree: Frozen) -> None:
        root = tree.processes[family.pid]

        def wait(tid: int, deadline: float) -> int:
            if tid == root.pid:
                raise TimeoutError
            return os.waitpid(tid, ptrace.WALL)[1]

        with monkeypatch.context() as patch:
            patch.setattr(ptrace, "wait", wait)
            told.extend(killing.kill(tree.processes))

    frozen(family.pid, late)
    assert len(told) == 1 and told[0].endswith(f"was killed, and has not ended yet: {UNINTERRUPTIBLE}")

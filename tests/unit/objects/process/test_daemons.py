"""Daemons of a job fell to its torpor-init, and are found there; nobody else's are taken for its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

import torpor
from tests.conformance.harness import wait_until
from torpor import procfs
from torpor.objects.process import daemons

JOB = "(sleep 1001 & sleep 1002 & exit); exec sleep 1000"


@pytest.fixture
def job() -> Iterator[tuple[int, int]]:
    """A torpor-init and its job, which has left two daemons."""
    started = torpor.start(["sh", "-c", JOB])
    root = started.tree_pid
    init = procfs.stat(root).ppid
    below = [root]
    try:
        wait_until(lambda: len(procfs.children(init, [init])) == 3, "the daemons to fall to init", 30)
        below += procfs.children(init, [init])
        wait_until(lambda: procfs.stat(root).comm == b"sleep", "the job to run", 30)
        yield init, root
    finally:
        for pid in below:  # the kernel's list lacks some while one is reaped (proc_pid_children(5))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait()


def test_daemons_are_those_that_fell_to_init(job: tuple[int, int]) -> None:
    init, root = job
    assert daemons.is_init(init) and not daemons.is_init(root) and not daemons.is_init(1 << 22)
    found = daemons.of(root)
    assert sorted(found) == sorted(set(procfs.children(init, [init])) - {root})
    assert daemons.notices(root) == []
    os.kill(found[0], signal.SIGKILL)
    wait_until(lambda: daemons.of(root) == found[1:], "the end of one")


def test_a_daemon_that_its_user_may_not_read_is_told_and_not_taken(
    job: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = job
    hidden, other = daemons.of(root)
    real = os.readlink

    def readlink(path: str, *, dir_fd: int | None = None) -> str:
        if path == f"/proc/{hidden}/exe":
            raise PermissionError(path)
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", readlink)
    assert daemons.of(root) == [other]
    (told,) = daemons.notices(root)
    assert str(hidden) in told


def test_without_an_init_nobody_knows_of_daemons() -> None:
    assert daemons.of(os.getpid()) == [] == daemons.notices(os.getpid())
    assert daemons.of(1 << 22) == []


def test_when_a_job_began(job: tuple[int, int]) -> None:
    _, root = job
    assert abs(daemons.began_ns(root) - procfs.stat(root).began_ns) < 10**9

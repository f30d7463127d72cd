"""Programs to freeze, what others see of them, and the calls that are made in their name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from torpor import procfs
from torpor.remote.batch import Batch, Replies
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Frozen
from torpor.remote.injection import Injection
from torpor.remote.snapshot import Snapshot

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python programs that print a line when they are ready; ends them after the test."""
    running: list[subprocess.Popen[str]] = []

    def run(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> str:
    """Wake a program that waits for a line, and give its answer."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def caught(pid: int) -> int:
    return int(procfs.status(procfs.read(f"/proc/{pid}/status"))[b"SigCgt"], 16)


def appearance(pid: int) -> tuple[object, ...]:
    """What others see of a process that a checkpoint must not change."""
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    return (
        procfs.read(f"/proc/{pid}/maps"),
        sorted(os.listdir(f"/proc/{pid}/fd")),
        procfs.children(pid, procfs.threads(pid)),
        *(status[name] for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt", b"TracerPid")),
    )


@contextmanager
def entered(pid: int, *, snapshot: bool = False) -> Iterator[tuple[Injection, Batch, list[Snapshot]]]:
    """A frozen process, a batch for its host thread to be filled, and the snapshot that is asked for in it."""
    with Frozen(pid, 5) as frozen:
        process = frozen.processes[pid]
        injection = Injection(process, CodeStubs(), caught(pid))
        injection.open(1 << 16)
        batch = Batch()
        snapshots = [Snapshot(injection)] if snapshot else []
        for taken in snapshots:
            taken.ask(batch)
        try:
            yield injection, batch, snapshots
        finally:
            for taken in snapshots:
                taken.end()


def run(injection: Injection, batch: Batch, snapshots: list[Snapshot]) -> Replies:
    injection.start({injection.host.tid: batch})
    replies = injection.finish()[injection.host.tid]
    for taken in snapshots:
        taken.settle()
    injection.close()
    return replies

"""What is asked of the processes of this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor import processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_tree_and_its_memory(child: subprocess.Popen[bytes]) -> None:
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 0 < processes.resident(child.pid) < own < processes.resident(os.getpid()) + (1 << 20)
    assert child.pid in processes.children(os.getpid())
    assert {os.getpid(), child.pid} <= set(processes.tree(os.getpid()))
    assert processes.parent(child.pid) == os.getpid()
    assert processes.start_time(child.pid) >= processes.start_time(os.getpid())


THREADS = """
import signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: None)
open_one = threading.Event()
def other():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    open_one.set()
    signal.sigwait({signal.SIGUSR1})
threading.Thread(target=other, daemon=True).start()
open_one.wait()
print(flush=True)
sys.stdin.read()
"""


def test_what_a_process_would_die_of() -> None:
    command = [sys.executable, "-c", THREADS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        told = {number: processes.dies_of(process.pid, number) for number in signal.valid_signals()}
        process.stdin.close()
    assert [told[one] for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == [False] * 3, "caught or ignored"
    assert not told[signal.SIGUSR1], "all threads block it: one waits for it"
    assert told[signal.SIGUSR2], "one thread does not block it"
    assert told[signal.SIGRTMAX]
    assert not processes.dies_of(process.pid, signal.SIGUSR2), "it has ended"


def test_a_process_that_is_killed_and_reaped(child: subprocess.Popen[bytes]) -> None:
    assert not processes.is_ending(child.pid)
    child.kill()
    assert processes.is_ending(child.pid)
    child.wait()
    assert processes.is_ending(child.pid)
    assert processes.children(child.pid) == []
    assert list(processes.tree(child.pid)) == [child.pid]
    assert processes.resident(child.pid) == 0
    for ask in (processes.start_time, processes.parent):
        with pytest.raises(ProcessLookupError, match=f"there is no process {child.pid}"):
            ask(child.pid)

"""What is asked of the processes of this host."""

from __future__ import annotations

import os
import subprocess
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

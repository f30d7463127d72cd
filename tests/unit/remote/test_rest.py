"""Threads that give something to others are stopped at a moment when they are in the middle of nothing."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.remote.freeze import Frozen, LastToStop

WORKS = """
import mmap, select, threading, time
file = open(%r, "r+b")
shared = mmap.mmap(file.fileno(), 4096)
def handle(rest):
    while True:
        shared[0] = 1
        until = time.monotonic() + 0.004
        while time.monotonic() < until: pass
        shared[0] = 0
        rest()
"""
WAITS = "print('ready', flush=True)\nhandle(lambda: time.sleep(0.004))\n"
COMPUTES = """
threading.Thread(target=handle, args=[lambda: select.select([], [], [], 0.03)], daemon=True).start()
print("ready", flush=True)
while True: pass
"""


@pytest.mark.parametrize(("program", "times"), [(WAITS, 10), (COMPUTES, 3)], ids=["waits", "computes"])
def test_nobody_is_stopped_in_the_middle(tmp_path: Path, program: str, times: int) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    command = [sys.executable, "-c", WORKS % str(path) + program]
    with (
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), 4096) as shared,
        subprocess.Popen(command, stdout=subprocess.PIPE) as target,
    ):
        try:
            assert target.stdout
            assert target.stdout.readline() == b"ready\n"
            for _ in range(times):
                with Frozen(target.pid, 5, LastToStop(lambda name: False, lambda: None)):
                    assert shared[0] == 0
        finally:
            target.kill()

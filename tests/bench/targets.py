"""The programs that are frozen: random numpy data, many processes, many threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

_ARRAY = """
import sys, threading, time, numpy
rng = numpy.random.default_rng(0)
data = [rng.integers(0, 255, 1 << 20, dtype=numpy.uint8) for _ in range({mib})]
for _ in range(4): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
_TREE = """
import os, signal
for _ in range(99):
    if not os.fork():
        break
else:
    print("ready", flush=True)
while True: signal.pause()
"""
_THREADS = """
import threading
threading.stack_size(256 << 10)
for _ in range(999): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Target:
    """A program to freeze."""

    name: str
    program: str
    size: int
    """Bytes of memory that it fills itself; 0: only what Python takes."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, with no descriptor that leads out of its tree, and wait until it is ready."""
        process = subprocess.Popen(
            [sys.executable, "-c", self.program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that `end` reaches all of it
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a target with all that it started, whatever became of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


TARGETS = (
    *(
        Target(name, _ARRAY.format(mib=mib), mib << 20)
        for name, mib in (("64 MiB", 64), ("1 GiB", 1024), ("4 GiB", 4096))
    ),
    Target("100 processes", _TREE, 0),
    Target("1000 threads", _THREADS, 0),
)

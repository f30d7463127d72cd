"""The programs that are frozen: random numpy data, many processes, many threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

_ARRAY = """
import signal, threading, numpy
rng = numpy.random.default_rng(0)
data = [rng.integers(0, 255, 1 << 20, dtype=numpy.uint8) for _ in range({mib})]
for _ in range(4): threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    for page in rng.choice({mib} << 8, int(({mib} << 8) * {share}), replace=False):
        data[page >> 8][(page & 255) << 12] += 1
    print("written", flush=True)
"""
"""At each SIGUSR1 it writes to a share of its pages, at random."""
_TREE = """
import os, signal
held = bytearray(os.urandom({shared} << 20))
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
for _ in range({count} - 1): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
_DESCRIPTORS = """
import os, resource, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (10100, max(10100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
held = [os.open("/dev/null", os.O_RDWR) for _ in range(10000)]
print("ready", flush=True)
threading.Event().wait()
"""
_PIPES = """
import os, resource, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (2100, max(2100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
held = [os.pipe() for _ in range(1000)]
print("ready", flush=True)
threading.Event().wait()
"""
_MAPPINGS = """
import ctypes, mmap, threading
libc = ctypes.CDLL(None)
held = mmap.mmap(-1, 50000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
for page in range(0, 50000, 2): libc.mprotect(ctypes.c_void_p(at + page * 4096), 4096, 1)
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
    writes: bool = False
    """Whether it writes to a part of that when it is told to."""

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


def array(mib: int, share: float = 0.01) -> Target:
    """A program with an array of that many MiB, which writes a share of its pages when it is told to."""
    name = f"{mib >> 10} GiB" if mib >= 1024 else f"{mib} MiB"
    return Target(name, _ARRAY.format(mib=mib, share=share), mib << 20, writes=True)


def write(process: subprocess.Popen[bytes]) -> None:
    """Let a target write, and wait until it has."""
    assert process.stdout is not None
    process.send_signal(signal.SIGUSR1)
    process.stdout.readline()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a target with all that it started, whatever became of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


TARGETS = (
    *map(array, (64, 1024, 4096)),
    Target("100 processes", _TREE.format(shared=0), 0),
    Target("100 processes that share 64 MiB", _TREE.format(shared=64), 0),
    *(Target(f"{count} threads", _THREADS.format(count=count), 0) for count in (1000, 5000)),
    Target("10000 descriptors", _DESCRIPTORS, 0),
    Target("1000 pipes", _PIPES, 0),
    Target("50000 mappings", _MAPPINGS, 0),
)

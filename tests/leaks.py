"""What a test left behind: processes, mounts, files (for the fixture `no_leaks` around every test), descriptors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "TORPOR_TEST_MARK"
"""Every process a test starts carries this variable with the test's own value: also one that was frozen
and woken, since its environment lies in its memory."""

PATIENCE = 60.0
"""Seconds that may pass until what is on its way out is gone: many, since a loaded host takes its time, and a test that
leaves nothing waits for nothing. Other runs' files in /dev/shm are gone by then too."""


def marked(mark: str) -> set[int]:
    """The processes, this one excepted, whose environment carries `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's: not ours
        if wanted in environment.split(b"\0"):
            found.add(int(entry.name))
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return parents


def descendants(of: int) -> set[int]:
    """All processes below `of`, zombies included."""
    parents = _parents()
    found: set[int] = set()
    layer = {of}
    while layer := {pid for pid, parent in parents.items() if parent in layer} - found:
        found |= layer
    return found


def _describe(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        comm, state = Path(f"/proc/{pid}/stat").read_text(errors="replace").split(")")[0:2]
    except OSError:
        return f"process {pid} (gone now)"
    return f"process {pid} ({name or comm.split('(')[1]}, state {state.split()[0]})"


def _mounts() -> set[str]:
    found = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return found if "TORPOR_TESTS_APART" in os.environ else {path for path in found if "torpor" in path}


def _files() -> set[str]:
    # In a host's /dev/shm (not one of tests/apart), as in /tmp, only what bears our name is ours; a private directory
    # of another run's test is not.
    in_memory = "*" if "TORPOR_TESTS_APART" in os.environ else "*torpor*"
    found = (*Path("/tmp").glob("*torpor*"), *Path("/dev/shm").glob(in_memory))
    return {str(path) for path in found if not path.name.startswith(("torpor-test-", "pytest-of-"))}


@dataclass
class Before:
    """What there was before a test."""

    children: set[int]
    mounts: set[str]
    files: set[str]

    @classmethod
    def now(cls) -> Before:
        return cls(descendants(os.getpid()), _mounts(), _files())

    def left(self, mark: str, patience: float = PATIENCE) -> list[str]:
        """What is there now that was not, in words. Processes are ended: a leak stays one test's."""
        deadline = time.monotonic() + patience
        while (found := self._left(mark)) != (set(), set(), set()) and time.monotonic() < deadline:
            time.sleep(0.02)
        pids, mounts, files = found
        leaks = [_describe(pid) for pid in sorted(pids)]
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):  # gone, or not a child of ours to wait for
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return [*leaks, *(f"mount {path}" for path in sorted(mounts)), *(f"file {path}" for path in sorted(files))]

    def _left(self, mark: str) -> tuple[set[int], set[str], set[str]]:
        pids = (descendants(os.getpid()) | marked(mark)) - self.children
        return pids, _mounts() - self.mounts, _files() - self.files


def descriptors() -> dict[str, str]:
    """What each descriptor of this process leads to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the listing
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Raise AssertionError if this process has one afterwards that it did not have before.

    There may be fewer: what an earlier test dropped is closed when the garbage collector comes to it.
    """
    before = descriptors()
    yield
    left = {fd: what for fd, what in descriptors().items() if before.get(fd) != what}
    assert not left, f"left open: {left}"

"""PIDs as the kernel counts them: which comes next, and how to let those go by that come before one.

A PID, or the id of a thread, is given in turn: the lowest free one above the last, and from the highest on again from
`FIRST` (idr_alloc_cyclic in kernel/pid.c). So whoever may not choose one can walk to it (native/walk.c).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torpor._native import ffi, lib
from torpor.procfs import read, stat

FIRST = 300
"""RESERVED_PIDS (kernel/pid.c): those below are given once, after the boot."""
WALK_SECONDS = 20.0
"""The longest walk that is gone unasked."""
_MOST_WALKERS = 8
"""More stand in each other's way: one lock guards all PIDs."""
_NEAR_BY_WALKER = 64
"""Each may be held up with so many still to let go by (native/walk.c)."""
ZOMBIE = "ZX"
"""States of what has ended, and has its PID until its parent has waited for it."""
_REAPED_SECONDS = 3.0
"""In which init has waited for an orphan that has ended: that of some containers looks every two seconds only."""
_AT_ONCE_NS = 100_000_000
"""After which a walk listens to signals again."""
_TRIED_NS = 30_000_000
_TRIED, _TRIED_SECONDS = 500, 1.0
"""So many tell the pace, or what goes by in that time: on a busy host walkers wait for a processor."""


@dataclass(frozen=True)
class Numbers:
    """PIDs of a namespace, which are given from `first` to `end` - 1, again and again."""

    first: int
    end: int

    def left(self, last: int, target: int) -> int:
        """How many come before the target when `last` has been given."""
        distance = target - 1 - last
        return distance if distance >= 0 else distance + self.end - self.first

    def holds(self, pid: int) -> bool:
        """Whether a PID comes in turn."""
        return self.first <= pid < self.end


def here() -> Numbers:
    """Those of this process's own namespace."""
    return Numbers(FIRST, int(read("/proc/sys/kernel/pid_max")))


def last() -> int:
    """The PID that was given last."""
    return int(read("/proc/loadavg").split()[-1])


def is_taken(pid: int) -> bool:
    """Whether a process or thread has a PID, or a process group or session that lives on without its leader."""
    if os.path.exists(f"/proc/{pid}"):
        return True
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def wait_for_zombies(pids: Iterable[int]) -> None:
    """Wait a moment until zombies have let some PIDs go: what was killed just now is about to."""
    end = time.monotonic() + _REAPED_SECONDS
    while (pids := list(filter(_is_zombie, pids))) and time.monotonic() < end:
        time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return stat(pid).state in ZOMBIE
    except OSError:
        return False


@dataclass(frozen=True)
class Pace:
    """How a walk goes here."""

    per_second: float
    """PIDs."""
    walkers: int
    """Processes that let them go by, side by side."""

    @property
    def near(self) -> int:
        """To how many before a PID they go: the rest is for the one that is to bear it."""
        return 2 * self.walkers * _NEAR_BY_WALKER


@dataclass(frozen=True)
class Walk:
    """A walk that is to be gone."""

    pace: Pace
    length: int
    """How many numbers go by at least."""

    @property
    def seconds(self) -> float:
        """How long that takes."""
        return self.length / self.pace.per_second


def pace() -> Pace:
    """Walk for a moment, to know it.

    Raises:
        OSError: nobody can walk here, as the kernel has it: EAGAIN where the user may have no more processes.
    """
    numbers = here()
    walkers = min(len(os.sched_getaffinity(0)), _MOST_WALKERS)
    before, start = last(), time.monotonic()
    target = numbers.first + (before + _TRIED + 1 - numbers.first) % (numbers.end - numbers.first)
    passed, seconds = 0, 0.0
    with _looking() as loadavg:
        while passed < _TRIED and seconds < _TRIED_SECONDS:
            _walk(numbers, target, 0, walkers, loadavg, _TRIED_NS)
            passed, seconds = (last() - before) % (numbers.end - numbers.first), time.monotonic() - start
    if not passed:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return Pace(passed / seconds, walkers)


def whole_round() -> Walk | None:
    """A walk through all PIDs; None: nobody can walk here."""
    given = here()
    with suppress(OSError):
        return Walk(pace(), given.end - given.first)
    return None


def walk(numbers: Numbers, target: int, pace: Pace) -> Iterator[int]:
    """Let PIDs go by until a target is near. Tells again and again how many are left; a generator that may be given up.

    Raises:
        OSError: as `pace`.
    """
    with _looking() as loadavg:
        while (left := numbers.left(last(), target)) > pace.near:
            yield left
            _walk(numbers, target, pace.near, pace.walkers, loadavg, _AT_ONCE_NS)


def _walk(numbers: Numbers, target: int, near: int, walkers: int, loadavg: int, most_ns: int) -> None:
    way = ffi.new(
        "struct tp_walk *",
        {
            "target": target,
            "near": near,
            "first": numbers.first,
            "end": numbers.end,
            "most_ns": most_ns,
            "loadavg": loadavg,
            "walkers": walkers,
        },
    )
    result = lib.tp_walk(way)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


@contextmanager
def _looking() -> Iterator[int]:
    loadavg = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield loadavg
    finally:
        os.close(loadavg)

"""How the kernel assigns PIDs, and how to use up those that come before a wanted one.

PIDs and thread ids are assigned in turn: the lowest free one above the last, and after the highest again from `FIRST`
(idr_alloc_cyclic in kernel/pid.c). So a process that may not choose a PID can *walk* to it: it makes the kernel assign
all PIDs before the wanted one (native/walk.c).
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
"""RESERVED_PIDS (kernel/pid.c): lower PIDs are assigned only once, after the boot."""
WALK_SECONDS = 20.0
"""The longest walk that needs no consent of the user, in seconds."""
_MOST_WALKERS = 8
"""More would hinder each other: one lock guards all PIDs."""
_NEAR_BY_WALKER = 64
"""A walker may be preempted when this many PIDs are left to pass (native/walk.c)."""
ZOMBIE = "ZX"
"""States of a process that has ended. It keeps its PID until its parent waits for it."""
_REAPED_SECONDS = 3.0
"""How long we wait for init to reap an orphan. The init of some containers looks only every two seconds."""
_AT_ONCE_NS = 100_000_000
"""After this time a walk returns to handle signals."""
_TRIED_NS = 30_000_000
_TRIED, _TRIED_SECONDS = 500, 1.0
"""The pace is measured over this many PIDs or this time: on a busy host walkers wait for a processor."""


@dataclass(frozen=True)
class Numbers:
    """The PIDs of a namespace, which are assigned from `first` to `end` - 1, again and again."""

    first: int
    end: int

    def left(self, last: int, target: int) -> int:
        """How many PIDs come before `target` when `last` was assigned last."""
        distance = target - 1 - last
        return distance if distance >= 0 else distance + self.end - self.first

    def holds(self, pid: int) -> bool:
        """Whether the kernel assigns this PID in turn."""
        return self.first <= pid < self.end


def here() -> Numbers:
    """The PIDs of this process's own namespace."""
    return Numbers(FIRST, int(read("/proc/sys/kernel/pid_max")))


def last() -> int:
    """The PID that was assigned last."""
    return int(read("/proc/loadavg").split()[-1])


def is_taken(pid: int) -> bool:
    """Whether a PID is in use by a process or thread, or by a process group or session that has outlived its leader."""
    if os.path.exists(f"/proc/{pid}"):
        return True
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def wait_for_zombies(pids: Iterable[int]) -> None:
    """Wait up to 3 s until zombies with these PIDs are reaped: processes that were just killed soon will be."""
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
    """How fast a walk goes on this host."""

    per_second: float
    """PIDs per second."""
    walkers: int
    """Processes that pass PIDs at the same time."""

    @property
    def near(self) -> int:
        """How many PIDs before the target the walkers stop. The task that is to create the process passes the rest."""
        return 2 * self.walkers * _NEAR_BY_WALKER


@dataclass(frozen=True)
class Walk:
    """A planned walk."""

    pace: Pace
    length: int
    """How many PIDs have to pass at least."""

    @property
    def seconds(self) -> float:
        """How long the walk takes."""
        return self.length / self.pace.per_second


SHORT = 4 * _TRIED
"""For a walk over fewer PIDs the pace is not measured: the measurement itself would pass many of them."""
SLOW = Pace(1000.0, 1)
"""A pace that any host reaches."""


def pace() -> Pace:
    """Walk for a moment to measure the pace.

    Raises:
        OSError: with the kernel's reason why no walk is possible: EAGAIN if the user may have no more processes.
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
    """The walk once through all PIDs; None if no walk is possible here."""
    given = here()
    with suppress(OSError):
        return Walk(pace(), given.end - given.first)
    return None


def walk(numbers: Numbers, target: int, pace: Pace) -> Iterator[int]:
    """Use up PIDs until the target is near, and yield now and then how many are left. The caller may stop at any time.

    Raises:
        OSError: as for `pace`.
    """
    with _looking() as loadavg:
        while (left := numbers.left(last(), target)) > pace.near:
            yield left
            _walk(numbers, target, pace.near, pace.walkers, loadavg, _AT_ONCE_NS)


def pass_first() -> None:
    """In a container's new PID namespace, pass the PIDs below `FIRST`: a job gets some that the kernel gives again."""
    if last() < FIRST:
        with suppress(OSError):  # the user may have no more processes
            for _ in walk(here(), FIRST + SLOW.near + 1, SLOW):
                pass


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

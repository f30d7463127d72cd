"""How long a thread has been waiting in a system call, from the scheduler's statistics.

The kernel keeps the deadline of an interrupted call where nobody can read it. But the scheduler shows when a thread
last ran (se.exec_start in /proc/PID/task/TID/sched, kernel/sched/debug.c), and a waiting thread last ran when its wait
began. This must be read before the freeze, because a thread runs for a moment when it is stopped.

Each processor has its own scheduler clock, which leaves out time stolen by a hypervisor or spent in interrupts. So the
current time is read on the processor on which the thread went to sleep.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import TIMED_CALLS

_PROCESSOR = 39  # field of proc_pid_stat(5)


class _Moment(NamedTuple):
    """When a thread last ran."""

    clock_ns: int
    """By the scheduler clock of its processor."""
    switches: int
    """Voluntary context switches until then. Involuntary ones do not end a wait."""


@dataclass(frozen=True)
class _Wait:
    switches: int
    began_ns: int
    """CLOCK_MONOTONIC."""


class Waits:
    """The waits of a tree's threads: call `look` while it runs, `waited` when it is frozen."""

    def __init__(self) -> None:
        self._waits: dict[int, _Wait] = {}

    def look(self, tids: Iterable[tuple[int, int]]) -> None:
        """Note when the current wait began, for each (pid, tid) that is in a call with a time limit."""
        found: dict[int, list[tuple[int, _Moment]]] = {}
        for pid, tid in tids:
            folder = f"/proc/{pid}/task/{tid}"
            try:
                call = procfs.read(f"{folder}/syscall").split()[0]
                if not call.isdigit() or int(call) not in TIMED_CALLS:
                    continue
                moment = _last_run(folder)
                processor = int(procfs.parse_stat(procfs.read(f"{folder}/stat")).fields[_PROCESSOR - 1])
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended, the kernel has no such file, or it is not ours (the freeze will report that)
            found.setdefault(processor, []).append((tid, moment))
        allowed = os.sched_getaffinity(0)
        try:
            for processor, moments in found.items():
                if processor in allowed:
                    os.sched_setaffinity(0, {processor})
                os.sched_yield()  # makes the scheduler update the time
                clock, now = _last_run(f"/proc/self/task/{threading.get_native_id()}").clock_ns, time.monotonic_ns()
                for tid, moment in moments:
                    self._waits[tid] = _Wait(moment.switches, now - max(clock - moment.clock_ns, 0))
        finally:
            os.sched_setaffinity(0, allowed)

    def waited(self, pid: int, tid: int, stopped_ns: int) -> int | None:
        """How long a thread had been waiting when it was stopped, in nanoseconds; None if that is unknown.

        Args:
            pid: its process.
            tid: the thread, which is stopped.
            stopped_ns: when it was stopped (CLOCK_MONOTONIC).
        """
        try:
            moment = _last_run(f"/proc/{pid}/task/{tid}")
        except FileNotFoundError:
            return None
        seen = self._waits.get(tid)
        # Our stop adds one switch. If there are more, the wait began after the look, a moment before the stop.
        if seen is None or moment.switches > seen.switches + 1:
            return 0
        return max(stopped_ns - seen.began_ns, 0)


def _last_run(folder: str) -> _Moment:
    clock = switches = 0
    for line in procfs.read(f"{folder}/sched").splitlines():
        if line.startswith(b"se.exec_start"):
            milliseconds, _, fraction = line.split()[-1].partition(b".")
            clock = int(milliseconds) * 1_000_000 + int(fraction)
        elif line.startswith(b"nr_voluntary_switches"):
            switches = int(line.split()[-1])
            break
    return _Moment(clock, switches)

"""When a process is at rest: each of its threads waits for an event, and none is in the middle of an operation.

An operation that is half done may exist only in a thread's memory. For example, libzmq passes the parts of a message to
its I/O thread only when the last part has been given. A thread in the middle of an operation computes, or waits for a
lock for a moment.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Mapping
from typing import Protocol

from torpor.arch.x86_64 import NR, ORIG_RAX, R10, RDI, RSI, RSP, ended_early, in_system_call
from torpor.remote import memory

LOOKS = 8
"""The number of looks after which it is known which threads wait for events, at the earliest..."""
LEARNING_SECONDS = 0.5
"""...after so many seconds."""
PATIENCE = 3.0
"""Seconds after which a process is frozen in whatever state it is: several of its threads compute all the time."""
SHORT_NS = 50_000_000
"""A thread that waits for a lock with a shorter time limit is in the middle of an operation, mostly of a bytecode:
CPython's threads wait for the interpreter lock (GIL) for 5 ms at a time (take_gil(), Python/ceval_gil.c)."""

_EVENTS = frozenset({NR.poll, NR.ppoll, NR.select, NR.pselect6, NR.epoll_wait, NR.epoll_pwait, NR.epoll_pwait2})
"""The calls in which an event loop waits for its next event."""
_FUTEX_WAIT, _FUTEX_WAIT_BITSET, _FUTEX_COMMAND, _FUTEX_CLOCK_REALTIME = 0, 9, 0x7F, 256  # include/uapi/linux/futex.h
_TIMESPEC = struct.Struct("<qq")


class StoppedThread(Protocol):
    """A thread that ptrace has stopped."""

    @property
    def named(self) -> array[int]:
        """Its registers. A restarted call has its original number instead of that of restart_syscall."""


class Rest:
    """Examines a process each time that it is stopped, until it is at rest and may stay stopped."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._looks = 0
        self._loops: set[int] = set()
        """The threads that were seen to wait for an event."""
        self._locks: dict[int, tuple[int, int]] = {}
        """The futex and the stack pointer of each thread that waited for a lock at the last look."""

    def is_reached(self, pid: int, threads: Mapping[int, StoppedThread]) -> bool:
        """Examine the stopped threads of a process, by thread id. Return whether they may stay stopped.

        They may if all of them wait. Some never do, since they compute all the time. Then it is enough if those that
        have ever waited for events do so now, and no thread waits for a lock for just a moment.
        """
        self._looks += 1
        calls = {tid: thread.named for tid, thread in threads.items() if _is_in_call(thread.named)}
        waiting = {tid for tid, registers in calls.items() if registers[ORIG_RAX] in _EVENTS}
        locks = {tid: (r[RDI], r[RSP]) for tid, r in calls.items() if r[ORIG_RAX] == NR.futex}
        # Threads stop one after the other: one that began to wait may have got its lock from one that stopped later.
        short = {tid for tid, lock in locks.items() if self._locks.get(tid) != lock or not _waits_long(pid, calls[tid])}
        self._loops |= waiting
        self._locks = locks
        if len(calls) == len(threads) and not short:
            return True
        passed = time.monotonic() - self._began
        learned = self._looks >= LOOKS and passed >= LEARNING_SECONDS
        return passed >= PATIENCE or (learned and not short and self._loops & threads.keys() <= waiting)

    @property
    def pause(self) -> float:
        """Seconds to let the process run until the next look. They grow, so as not to keep step with its own rhythm."""
        return float(min(0.001 * 1.6**self._looks, 0.07))


def _is_in_call(registers: array[int]) -> bool:
    return in_system_call(registers) or ended_early(registers)


def _waits_long(pid: int, registers: array[int]) -> bool:
    """Whether a thread that waits for a futex does so without a time limit, or with a long one."""
    command = registers[RSI] & _FUTEX_COMMAND
    if command not in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET):
        return False
    if not registers[R10]:
        return True
    try:
        seconds, nanoseconds = _TIMESPEC.unpack(memory.read(pid, registers[R10], _TIMESPEC.size))
    except OSError:
        return False
    left = int(seconds) * 1_000_000_000 + int(nanoseconds)
    if command == _FUTEX_WAIT_BITSET:  # a point in time
        clock = time.CLOCK_REALTIME if registers[RSI] & _FUTEX_CLOCK_REALTIME else time.CLOCK_MONOTONIC
        left -= time.clock_gettime_ns(clock)
    return left >= SHORT_NS

"""Interval timers (setitimer) and POSIX timers (timer_create) of a process.

Kept: the remaining time and the interval of each, the ids of POSIX timers, their clock, notification and overrun. The
time that passes until the wake does not count.

Documented in: setitimer(2), timer_create(2), proc_pid_timers(5).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart, Stage, Step
from torpor.objects.process.texts import Texts
from torpor.probe import probe
from torpor.remote.batch import Batch, Call, Out

_ITIMERVAL = struct.Struct("<4q")  # struct itimerval / itimerspec: interval, value
_ENTRY = re.compile(
    rb"ID: (?P<id>\d+)\nsignal: (?P<signal>\d+)/(?P<value>[0-9a-f]+|\(null\))\n"
    rb"notify: (?P<how>signal|none|thread)/(?P<target>pid|tid)\.(?P<who>-?\d+)\nClockID: (?P<clock>-?\d+)"
)
CLOCK_MONOTONIC = 1
SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
PR_TIMER_CREATE_RESTORE_IDS = 77
_LAST_INTERVAL = 2  # ITIMER_PROF
_SIGEVENT = struct.Struct("<Qiii44x")  # sigev_value, sigev_signo, sigev_notify, sigev_notify_thread_id
_MAX_COUNT_UP = 10_000
"""The most ids to skip one by one if the kernel does not let us choose an id."""
_NOTIFY = {b"signal": SIGEV_SIGNAL, b"none": SIGEV_NONE, b"thread": SIGEV_THREAD}


class Asked(NamedTuple):
    """The entries of a process's batch."""

    intervals: list[int]
    posix: list[tuple[re.Match[bytes], int, int]]
    """The entry in /proc/PID/timers, and the batch entries of timer_gettime and timer_getoverrun."""


class Timers(ProcessPart[Asked, bool]):
    """The interval timers and POSIX timers of a process."""

    def ask(self, batch: Batch, texts: Texts) -> Asked:
        """Query the remaining times."""
        return Asked(
            intervals=[batch.add(NR.getitimer, which, Out(_ITIMERVAL.size)) for which in range(3)],
            posix=[
                (
                    found,
                    batch.add(NR.timer_gettime, int(found["id"]), Out(_ITIMERVAL.size)),
                    batch.add(NR.timer_getoverrun, int(found["id"])),
                )
                for found in _ENTRY.finditer(texts.timers)
            ],
        )

    def describe(self, asked: Asked, answers: Answers, out: pb.Process) -> None:
        """Write interval timers that run, and all POSIX timers."""
        replies = answers.replies
        for which, entry in enumerate(asked.intervals):
            times = _ITIMERVAL.unpack(replies.output(entry, 1))
            interval, value = (times[k] * 1_000_000 + times[k + 1] for k in (0, 2))
            if interval or value:
                out.interval_timers.add(which=which, interval_us=interval, value_us=value)
        for found, gettime, overrun in asked.posix:
            times = _ITIMERVAL.unpack(replies.output(gettime, 1))
            interval, value = (times[k] * 1_000_000_000 + times[k + 1] for k in (0, 2))
            to_thread = found["target"] == b"tid"
            out.posix_timers.add(
                id=int(found["id"]),
                clock=int(found["clock"]),
                notify=_NOTIFY[found["how"]] | (SIGEV_THREAD_ID if to_thread else 0),
                signal=int(found["signal"]),
                value=0 if found["value"] == b"(null)" else int(found["value"], 16),
                thread=answers.own_tids.get(int(found["who"]), 0) if to_thread else 0,
                interval_ns=interval,
                value_ns=value,
                overrun=max(replies.result(overrun), 0),
            )

    def validate_form(self, process: pb.Process) -> Iterator[str]:
        """Invalid numbers."""
        for interval in process.interval_timers:
            if interval.which > _LAST_INTERVAL or min(interval.interval_us, interval.value_us) < 0:
                yield f"its interval timer {interval.which} is invalid"
        for timer in process.posix_timers:
            if min(timer.id, timer.interval_ns, timer.value_ns) < 0:
                yield f"its timer {timer.id} is invalid"

    def host(self) -> bool:
        """Whether the kernel has PR_TIMER_CREATE_RESTORE_IDS."""
        return probe().timer_restore_ids

    def calls(self, process: pb.Process, host: bool) -> Iterator[Step]:
        """Start them with the remaining time, when the threads that they notify exist."""
        return (Step(Stage.ALL_THREADS, call) for call in start(process, restore_ids=host))


def start(process: pb.Process, *, restore_ids: bool) -> Iterator[Call]:
    """The calls that create the timers of a process and start them.

    Raises:
        RestoreFailed: an id is too high for this kernel.
    """
    for interval in process.interval_timers:
        # An expired timer restarts when its signal is taken (kernel/time/itimer.c): let it expire again.
        left = interval.value_us or 1
        content = _ITIMERVAL.pack(*divmod(interval.interval_us, 1_000_000), *divmod(left, 1_000_000))
        yield Call(NR.setitimer, (interval.which, content, 0), 0, f"starting interval timer {interval.which}")
    if not process.posix_timers:
        return
    if restore_ids:
        yield Call(NR.prctl, (PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0), 0, "choosing the ids of timers")
    next_id = 0
    for timer in sorted(process.posix_timers, key=lambda timer: timer.id):
        if not restore_ids:
            if timer.id > _MAX_COUNT_UP + len(process.posix_timers):
                raise RestoreFailed(
                    f"the kernel cannot give a timer the id {timer.id}", advice="restore on a newer one"
                )
            for skipped in range(next_id, timer.id):
                yield _create(CLOCK_MONOTONIC, _SIGEVENT.pack(0, 0, SIGEV_NONE, 0), skipped)
                yield Call(NR.timer_delete, (skipped,), 0, f"skipping the timer id {skipped}")
            next_id = timer.id + 1
        event = _SIGEVENT.pack(timer.value, timer.signal, timer.notify, timer.thread)
        yield _create(timer.clock, event, timer.id)
        times = (*divmod(timer.interval_ns, 1_000_000_000), *divmod(timer.value_ns, 1_000_000_000))
        if timer.value_ns:
            words = f"starting timer {timer.id}"
            yield Call(NR.timer_settime, (timer.id, 0, _ITIMERVAL.pack(*times), 0), 0, words)
    if restore_ids:
        yield Call(NR.prctl, (PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0), 0, "leaving the ids of timers to the kernel")


def _create(clock: int, event: bytes, wanted: int) -> Call:
    number = wanted.to_bytes(4, "little")
    return Call(NR.timer_create, (clock, event, number), 0, f"making timer {wanted}")

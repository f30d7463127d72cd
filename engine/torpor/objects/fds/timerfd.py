"""timerfd: reading a timer's expirations (timerfd_create(2)).

Kept: the clock, the remaining time, the interval, and the unread expirations. A wall-clock timer that was set to a
point in time (TFD_TIMER_ABSTIME) fires at that time, or at once if it has passed; all others continue with the
remaining time, as the clocks of the tree do. The request to report changes of the wall clock (TFD_TIMER_CANCEL_ON_SET)
is kept, also for an expired or disarmed timer. Not kept: a change that was not read yet, or that came while the tree
was not running.

A timer that is due, but whose interrupt the processor has not handled yet, shows no time and no expirations, like a
disarmed one (timerfd_get_remaining, fs/timerfd.c). Saved like that, it would lose the expiration, and a thread that
waits for it would wait for ever. So such timers are read a second time.

Refused: the alarm clocks, which wake a sleeping machine. Expirations are restored by an ioctl of kernels with
CONFIG_CHECKPOINT_RESTORE (fs/timerfd.c); other kernels accept a timer only if all were read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import Opening
from torpor.remote.sys import closed_on_error, syscall

CLOCK_REALTIME = 0
CLOCKS = {CLOCK_REALTIME: "the wall clock", 1: "CLOCK_MONOTONIC", 7: "CLOCK_BOOTTIME"}
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
TFD_IOC_SET_TICKS = 0x40085400
"""_IOW('T', 0, __u64) (include/uapi/linux/timerfd.h)."""
SECOND = 1_000_000_000
KTIME_MAX = (1 << 63) - 1
"""The end of the kernel's time, in ns: timers that only report changes of the wall clock are set to it."""
INTERRUPT = 0.01
"""Seconds within which a processor handles a timer's interrupt: in a busy virtual machine 15 000 took up to 5 ms."""
ITIMERSPEC = struct.Struct("=qqqq")
"""The interval, then the remaining time; each in seconds and nanoseconds."""

_PAIR = re.compile(r"\((\d+), (\d+)\)")


@dataclass
class TimerState:
    """The fields of fdinfo after the kernel has counted the expirations."""

    clock: int
    ticks: int
    flags: int
    left_ns: int
    interval_ns: int
    now_ns: int
    """The wall clock at that time."""

    @property
    def may_be_due(self) -> bool:
        """Whether it may have expired without a sign of it yet."""
        return not self.left_ns and (not self.ticks or self.interval_ns > 0)

    @property
    def next_ns(self) -> int:
        """The time until it expires next. Where none is left and it has expired, the next interval begins."""
        return self.left_ns or (self.interval_ns if self.ticks else 0)

    @property
    def absolute(self) -> bool:
        """Whether it is set to a point in time of the wall clock."""
        return self.clock == CLOCK_REALTIME and bool(self.flags & TFD_TIMER_ABSTIME) and self.next_ns > 0


class Timerfd(Kind[TimerState]):
    """A timer."""

    field = "timerfd"
    may_be_under_way = True

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == "anon_inode:[timerfd]"

    def grab(self, open_file: OpenFile[TimerState], pidfd: int, *, content: bool) -> TimerState:
        """Query the time first: an expired interval is not counted before it is read or queried."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            syscall(NR.timerfd_gettime, copy, bytearray(ITIMERSPEC.size))
            return _read("self", copy)

    def finish(self, mine: list[OpenFile[TimerState]], tree: GrabbedDescriptors) -> None:
        """Read again those that may be due, when their interrupts have been handled."""
        due = [open_file for open_file in mine if open_file.state.may_be_due] if tree.content else []
        if due:
            time.sleep(INTERRUPT)
        for open_file in due:
            open_file.state = _read(open_file.references[0].pid, open_file.references[0].fd)

    def unsupported(self, open_file: OpenFile[TimerState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its clock must not wake the machine."""
        if open_file.state.clock not in CLOCKS:
            yield Unsupported(f"its clock {open_file.state.clock} is not kept: it wakes a sleeping machine", "close it")

    def describe(
        self, open_file: OpenFile[TimerState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write all fields of fdinfo."""
        state, timer = open_file.state, out.timerfd
        timer.clock, timer.ticks, timer.interval_ns = state.clock, state.ticks, state.interval_ns
        timer.settime_flags = state.flags
        if state.absolute:
            timer.moment_ns = min(state.now_ns + state.next_ns, KTIME_MAX)
        else:
            timer.left_ns = state.next_ns

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """Clocks and times must be valid, and the kernel must accept expirations, if there are any."""
        for description in mine.values():
            timer = description.timerfd
            if timer.clock not in CLOCKS or timer.settime_flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET):
                yield Reason("the image", f"it holds a timer of clock {timer.clock}, which is never kept")
            if min(timer.left_ns, timer.interval_ns, timer.moment_ns) < 0:
                yield Reason("the image", "it has a timer with invalid times")
        if any(description.timerfd.ticks for description in mine.values()) and not _takes_ticks():
            yield Reason(
                "a timer of the image",
                "it has expired and was not read, which cannot be restored on this kernel",
                "use a kernel with CONFIG_CHECKPOINT_RESTORE",
            )

    def make(self, description: Description, opening: Opening) -> int:
        """Make it, and set the remaining time, or its point in time."""
        timer = description.timerfd
        with closed_on_error(syscall(NR.timerfd_create, timer.clock, os.O_CLOEXEC)) as fd:
            value, flags = timer.moment_ns or timer.left_ns, timer.settime_flags
            if timer.left_ns and flags & TFD_TIMER_ABSTIME:
                value += time.clock_gettime_ns(timer.clock)
            # A disarmed timer may have an interval, and may report changes of the wall clock.
            if value or timer.interval_ns or flags:
                times = ITIMERSPEC.pack(*divmod(timer.interval_ns, SECOND), *divmod(value, SECOND))
                syscall(NR.timerfd_settime, fd, flags, times)
            if timer.ticks:
                fcntl.ioctl(fd, TFD_IOC_SET_TICKS, struct.pack("=Q", timer.ticks))
            return fd


def _read(pid: int | str, fd: int) -> TimerState:
    """A timer's state at one moment: the kernel prints the expirations some time after the time that is left."""
    ticks = -1
    while True:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
            state = _parse(file.read())
        if state.ticks == ticks:
            return state
        ticks = state.ticks


def _parse(text: str) -> TimerState:
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    left, interval = (_PAIR.search(fields[name]) for name in ("it_value", "it_interval"))
    assert left
    assert interval
    left_ns, interval_ns = (int(pair[1]) * SECOND + int(pair[2]) for pair in (left, interval))
    return TimerState(
        clock=int(fields["clockid"]),
        ticks=int(fields["ticks"]),
        flags=int(fields["settime flags"], 8),
        left_ns=left_ns,
        interval_ns=interval_ns,
        now_ns=time.time_ns(),
    )


def _takes_ticks() -> bool:
    fd = syscall(NR.timerfd_create, 1, os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TFD_IOC_SET_TICKS, struct.pack("=Q", 1))
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return False
    finally:
        os.close(fd)
    return True

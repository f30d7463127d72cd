"""Timers that are waited for by descriptor: what has expired, and what is left."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors, timerfd
from torpor.objects.kind import borrowed
from torpor.remote.sys import syscall


def test_timers_keep_what_has_expired(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            """
def timer(clock, value, interval):
    fd = syscall(NR.timerfd_create, clock, os.O_NONBLOCK)
    times = ctypes.create_string_buffer(struct.pack("=qqqq", *divmod(interval, 10**9), *divmod(value, 10**9)))
    syscall(NR.timerfd_settime, fd, 0, ctypes.addressof(times))
    return fd
a = timer(1, 1, 10**6); select.select([a], [], []); time.sleep(0.01)
b = timer(0, 1, 0); select.select([b], [], [])
c = timer(7, 10**12, 0)
ready(a=a, b=b, c=c)
wait()
"""
        )
        with opened(image) as woken:
            assert int.from_bytes(os.read(woken(fds["a"]), 8), sys.byteorder) >= 10
            assert select.select([woken(fds["a"])], [], [], 5)[0], "the interval goes on"
            assert int.from_bytes(os.read(woken(fds["b"]), 8), sys.byteorder) == 1
            for name in "bc":
                with pytest.raises(BlockingIOError):
                    os.read(woken(fds[name]), 8)

    acting(body)


def test_a_timer_that_is_due_when_its_interrupt_comes_late(acting: Acting) -> None:
    """Until then it shows no time and no expirations, as one that is off: it fires here when it is read again."""

    def body(_: Path) -> None:
        with (
            holder(
                """
a = syscall(NR.timerfd_create, 1, 0)
b = syscall(NR.timerfd_create, 1, os.O_NONBLOCK)
c = syscall(NR.timerfd_create, 1, 0)
interval = ctypes.create_string_buffer(struct.pack("=qqqq", 1000, 0, 0, 0))
syscall(NR.timerfd_settime, c, 0, ctypes.addressof(interval))
ready(a=a, b=b, c=c)
wait()
"""
            ) as tree,
            pytest.MonkeyPatch.context() as patch,
            ExitStack() as stack,
        ):
            fds = tree.ready()
            pidfd = os.pidfd_open(tree.pids[0])
            stack.callback(os.close, pidfd)

            def interrupted(_: float) -> None:
                for name, interval in (("a", 0), ("c", 1000)):
                    with borrowed(pidfd, fds[name]) as copy:
                        syscall(NR.timerfd_settime, copy, 0, timerfd.ITIMERSPEC.pack(interval, 0, 0, 1))
                        assert select.select([copy], [], [], 5)[0]

            patch.setattr(time, "sleep", interrupted)
            image = tree.dump()
        with opened(image) as woken:
            for name in "ac":
                assert int.from_bytes(os.read(woken(fds[name]), 8), sys.byteorder) == 1
            with pytest.raises(BlockingIOError):
                os.read(woken(fds["b"]), 8)

    acting(body)


def test_a_moment_of_the_wall_clock_that_has_passed_fires_at_once() -> None:
    image = Tree()
    timer = image.descriptions.add(flags=os.O_RDWR).timerfd
    timer.settime_flags, timer.moment_ns = 1, time.time_ns() - 3600 * 10**9
    image.processes.add(pid=1).fds.add(fd=3)
    with opened(image) as woken:
        assert select.select([woken(3)], [], [], 5)[0]


def test_timers_that_cannot_be_are_refused() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).timerfd.clock = 8
    image.descriptions.add(flags=os.O_RDWR).timerfd.left_ns = -1
    assert len(descriptors.validate(image)) == 2

"""Interval timers and POSIX timers: their ids, what they tell, and the time that they have left."""

from __future__ import annotations

import signal
import struct

import pytest

from tests.unit.objects.process.inside import described, make, restored
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.process import timers
from torpor.objects.process.timers import SIGEV_NONE, SIGEV_SIGNAL, Timers, start
from torpor.remote.sys import syscall

TIMERS = Timers()
HOUR = 3600


def with_ids(*wanted: int) -> None:
    """Make timers; those between are deleted again."""
    for number in range(max(wanted) + 1):
        event = struct.pack("<Qiii44x", 70 + number, signal.SIGUSR1, SIGEV_SIGNAL if number else SIGEV_NONE, 0)
        assert syscall(NR.timer_create, timers.CLOCK_MONOTONIC, event, got := bytearray(4)) == 0
        assert int.from_bytes(got, "little") == number
        syscall(NR.timer_settime, number, 0, struct.pack("<4q", 5, 6, HOUR, 0), 0)
    for number in set(range(max(wanted))) - set(wanted):
        syscall(NR.timer_delete, number)


def test_timers_come_back_with_the_time_that_they_had_left() -> None:
    def run() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, HOUR, 7)
        with_ids(0, 3)

    image = described(TIMERS, run)
    (interval,) = image.interval_timers
    assert (interval.which, interval.interval_us) == (1, 7_000_000) and 0 < interval.value_us <= (HOUR + 1) * 10**6
    assert sorted((one.id, one.notify, one.signal, one.value) for one in image.posix_timers) == [
        (0, SIGEV_NONE, signal.SIGUSR1, 70),
        (3, SIGEV_SIGNAL, signal.SIGUSR1, 73),
    ]
    again = restored(TIMERS, image)
    for before, after in zip(
        *(sorted(one.posix_timers, key=lambda timer: timer.id) for one in (image, again)), strict=True
    ):
        assert (HOUR - 60) * 10**9 < after.value_ns <= before.value_ns
        after.value_ns = before.value_ns
        assert after == before
    assert again.interval_timers[0].value_us <= interval.value_us + 10**6


def test_a_kernel_that_chooses_ids_is_led_to_them_by_timers_that_go_again() -> None:
    process = pb.Process()
    for number in (2, 5):
        process.posix_timers.add(id=number, clock=timers.CLOCK_MONOTONIC, notify=SIGEV_NONE)
    calls = list(start(process, restore_ids=False))
    assert [call.nr for call in calls].count(NR.timer_delete) == 4

    def lead() -> None:
        for call in calls:
            make(call)

    assert sorted(one.id for one in described(TIMERS, lead).posix_timers) == [2, 5]
    process.posix_timers.add(id=1 << 20)
    with pytest.raises(RestoreFailed, match=f"cannot give a timer the id {1 << 20}"):
        list(start(process, restore_ids=False))


def test_a_timer_that_has_expired_expires_again() -> None:
    process = pb.Process()
    process.interval_timers.add(which=0, interval_us=0, value_us=0)
    (call,) = start(process, restore_ids=True)
    assert call.args[1] == struct.pack("<4q", 0, 0, 0, 1)


@pytest.mark.parametrize("changes", [{"interval_ns": -1}, {"value_ns": -1}, {"id": -1}])
def test_timers_that_are_invalid(changes: dict[str, int]) -> None:
    process = pb.Process()
    process.posix_timers.add(id=1, interval_ns=1, value_ns=1)
    process.interval_timers.add(which=2, value_us=1)
    assert list(TIMERS.validate_form(process)) == []
    process.posix_timers.add(**changes)
    assert len(list(TIMERS.validate_form(process))) == 1
    process.interval_timers.add(which=3)
    assert len(list(TIMERS.validate_form(process))) == 2

"""What is set for threads, held against what they inherit from who wakes them, on hosts that this one is not."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.process.thread_attributes import (
    ATTRIBUTES,
    FULL,
    Allowed,
    Attributes,
    ThreadAttributes,
    allowed,
    usual_slice,
)


def host(**options: object) -> Allowed:
    """A host with clamps, of which the restorer has none, nor anything else that is unusual."""
    usual: dict[str, object] = {"clamps": True, "clamped": False, "slice_chosen": False, "scheduler": os.SCHED_OTHER}
    return replace(allowed(), **{**usual, **options})  # type: ignore[arg-type]


def thread(**options: int) -> pb.Thread:
    """A thread with nothing of its own."""
    found = pb.Thread(tid=1, **options)  # type: ignore[arg-type]
    found.affinity.extend(os.sched_getaffinity(0))
    return found


def attributes(one: pb.Thread, on: Allowed) -> list[Attributes]:
    """What sched_setattr(2) is called with."""
    steps = ThreadAttributes().calls(one, pb.Process(), pb.Tree(), on)
    contents = [step.call.args[1] for step in steps if step.call.nr == NR.sched_setattr]
    return [Attributes(*ATTRIBUTES.unpack(content)) for content in contents if isinstance(content, bytes)]


def test_clamps_of_who_wakes_a_thread_are_taken_off() -> None:
    assert not attributes(thread(), host())
    (set_,) = attributes(thread(), host(clamped=True))
    assert (set_.least, set_.most) == (0, FULL)
    (set_,) = attributes(thread(scheduler=os.SCHED_FIFO, rt_priority=1), host(clamped=True, real_time=99))
    assert (set_.least, set_.most) == (FULL, FULL), "what a real-time thread has that chose none"
    (set_,) = attributes(thread(clamp_least=10, clamp_most=20), host(clamped=True))
    assert (set_.least, set_.most) == (10, 20)
    assert not attributes(thread(), host(clamps=False, clamped=False))


def test_a_slice_of_who_wakes_a_thread_is_taken_back() -> None:
    assert [one.runtime for one in attributes(thread(), host(slice_chosen=True))] == [0]
    assert [one.runtime for one in attributes(thread(slice_ns=5), host(slice_chosen=True))] == [0, 5]
    assert usual_slice() >= 0


def test_a_thread_that_may_not_leave_the_idle_class_is_told() -> None:
    bound = host(scheduler=os.SCHED_IDLE, nice=0, may_leave_idle=1)
    (words,) = ThreadAttributes().warnings(thread(), bound)
    assert "SCHED_IDLE" in words
    steps = ThreadAttributes().calls(thread(slice_ns=5), pb.Process(), pb.Tree(), bound)
    assert not [step for step in steps if step.call.nr in (NR.sched_setscheduler, NR.sched_setattr)]
    assert not list(ThreadAttributes().warnings(thread(scheduler=os.SCHED_IDLE), bound))
    free = host(scheduler=os.SCHED_IDLE, nice=1, may_leave_idle=1)
    assert not list(ThreadAttributes().warnings(thread(nice=1), free))
    steps = ThreadAttributes().calls(thread(), pb.Process(), pb.Tree(), free)
    assert [step.call.args[1] for step in steps if step.call.nr == NR.sched_setscheduler] == [os.SCHED_OTHER]


def test_what_a_restorer_with_reset_on_fork_passes_on() -> None:
    for policy, nice in (os.SCHED_BATCH, -3), (os.SCHED_FIFO, 0), (os.SCHED_IDLE, 3):
        reader, writer = os.pipe()
        if not os.fork():
            with suppress(PermissionError):  # as an ordinary user
                os.nice(nice)
                real_time = os.sched_param(policy == os.SCHED_FIFO)
                os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, real_time)
            own = allowed()
            if not os.fork():
                given = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
                os.write(writer, str(given).encode())
                os._exit(0)
            os.wait()
            os.write(writer, str((own.scheduler, own.nice)).encode())
            os._exit(0)
        os.wait()
        told = os.read(reader, 100)
        os.close(reader)
        os.close(writer)
        half = len(told) // 2
        assert told and told[:half] == told[half:]

"""Threads: what is set in which order, how they are cloned, and which hang in a call."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from torpor import procfs
from torpor.arch.x86_64 import MIN_XSAVE, NR, REGISTER_COUNT
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage
from torpor.objects.process import threads
from torpor.objects.process.threads import Inherited, ThreadState
from torpor.remote.batch import Call

HERE = Inherited(timer_slack_ns=50_000, no_new_privs=False)


def thread(**changed: Any) -> pb.Thread:
    return pb.Thread(tid=7, name=b"name", registers=bytes(8 * REGISTER_COUNT), xstate=bytes(MIN_XSAVE), **changed)


def calls(one: pb.Thread, host: Inherited = HERE) -> list[tuple[Stage, Call]]:
    return [tuple(step) for step in ThreadState().calls(one, pb.Process(), pb.Tree(), host)]  # type: ignore[misc]


def numbers(one: pb.Thread, host: Inherited = HERE) -> list[int]:
    return [call.nr if call.nr != NR.prctl else call.args[0] for _, call in calls(one, host)]  # type: ignore[misc]


def test_a_thread_that_set_nothing_gets_its_address_and_name() -> None:
    assert numbers(thread()) == [NR.set_tid_address, threads.PR_SET_NAME]
    (_, address), (_, name) = calls(thread(clear_child_tid=0x1000))
    assert (address.args, address.expect) == ((0x1000,), 7)
    assert name.args[1] == b"name\0"


def test_a_name_is_never_longer_than_the_kernel_takes() -> None:
    one = thread()
    one.name = b"x" * 40
    assert calls(one)[1][1].args[1] == b"x" * 15 + b"\0"


def test_the_signal_at_its_parents_end_is_set_after_credentials_which_clear_it() -> None:
    stage, call = calls(thread(pdeath_signal=15))[-1]
    assert (stage, call.args) == (Stage.AFTER_CREDENTIALS, (threads.PR_SET_PDEATHSIG, 15))


def test_what_threads_have_already_is_not_set_again() -> None:
    assert threads.PR_SET_TIMERSLACK not in numbers(thread(timer_slack_ns=50_000))
    assert threads.PR_SET_TIMERSLACK in numbers(thread(timer_slack_ns=1))
    assert threads.PR_SET_TIMERSLACK not in numbers(thread(timer_slack_ns=0)), "a realtime thread has none"


def test_what_cannot_be_taken_back_is_said() -> None:
    bound = Inherited(50_000, no_new_privs=True)
    assert [len(list(ThreadState().warnings(one, bound))) for one in (thread(), thread(no_new_privs=True))] == [1, 0]
    assert not list(ThreadState().warnings(thread(), HERE))


@pytest.mark.parametrize(
    ("flags", "size", "given"),
    [(0, 8192, 0), (-(1 << 31), 8192, -(1 << 31)), (1, 8192, 0), (2, 8192, None), (0, 0, None)],
)
def test_an_alternate_stack_is_set_unless_there_is_none(flags: int, size: int, given: int | None) -> None:
    """Also if the thread is on it now (SS_ONSTACK), which the kernel knows by the stack pointer."""
    one = thread()
    one.altstack.sp, one.altstack.size, one.altstack.flags = 0x1000, size, flags
    found = [call.args[0] for _, call in calls(one) if call.nr == NR.sigaltstack]
    assert found == ([] if given is None else [threads._SIGALTSTACK.pack(0x1000, given, size)])


def test_registers_that_are_incomplete_are_refused() -> None:
    assert not list(ThreadState().validate_form(thread()))
    short = pb.Thread(registers=bytes(8), xstate=bytes(8))
    assert len(list(ThreadState().validate_form(short))) == 2


def test_a_clone_has_its_id_and_its_flags_in_one_struct() -> None:
    call = threads.birth(thread())
    assert (call.nr, call.expect, call.args[1]) == (NR.clone3, 7, 88)
    assert threads.clone_flags(call) == threads._THREAD
    assert threads.clone_flags(threads.clone(0, 17, 9, "a child")) == 17


def test_who_waits_for_a_disk_is_found_and_who_only_passes_by_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: dict[int, list[int | None]] = {1: [4, 4, 4, 4], 2: [4, 5], 3: [None], 4: [4, None]}
    monkeypatch.setattr(threads, "_uninterruptible", lambda pid, tid: waits[tid].pop(0) if waits[tid] else None)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 1

    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    (reason,) = threads.stuck(lambda: [(os.getpid(), tid) for tid in waits], 3)
    assert reason.subject.endswith(", thread 1")


def test_a_thread_that_runs_or_has_ended_is_in_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads._uninterruptible(os.getpid(), threading.get_native_id()) is None
    assert threads._uninterruptible(os.getpid(), 1 << 22) is None
    read, seen = procfs.read, []

    def asleep(path: str) -> bytes:
        text = read(path)
        seen.append(text)
        return text.replace(b") R ", b") D ", 1) if path.endswith("/stat") else text

    monkeypatch.setattr(procfs, "read", asleep)
    switches = threads._uninterruptible(os.getpid(), threading.get_native_id())
    assert f"\nvoluntary_ctxt_switches:\t{switches}\n".encode() in seen[-1]

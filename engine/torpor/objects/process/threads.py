"""Threads: registers and the whole xsave area, masks, and what the kernel keeps for each.

Kept: general registers with fs_base and gs_base, xsave area (whatever XCR0 has on), signal mask, signals queued to the
thread, alternate stack, robust list, clear_child_tid, rseq registration, name, parent-death signal, no_new_privs,
nice, scheduling policy, affinity, timer slack, and what is in traits.py. An interrupted system call is kept as the
kernel shows it: -ERESTART* in rax and its number in orig_rax, from which the restoring kernel restarts it (see
x86_64.portable).

Refused: 32-bit code; deadline and BPF policies, shadow stacks.

Documented in: prctl(2), rseq(2) and Documentation/userspace-api/rseq.rst, set_robust_list(2), sigaltstack(2).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torpor import procfs
from torpor.arch import x86_64
from torpor.arch.x86_64 import NR, Portable
from torpor.errors import Reason, Refused
from torpor.image import image_pb2 as pb
from torpor.objects.process import credentials, thread_attributes
from torpor.remote import memory, ptrace
from torpor.remote.batch import Batch, Call, Out, Replies, Struct
from torpor.remote.freeze import SEE_WHY, UNINTERRUPTIBLE, Thread, describe_process
from torpor.remote.waits import Waits

PR_GET_PDEATHSIG = 2
PR_GET_NAME = 16
PR_GET_TIMERSLACK = 30
PR_GET_NO_NEW_PRIVS = 39
PR_GET_TID_ADDRESS = 40

_KEPT_POLICIES = {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE, os.SCHED_FIFO, os.SCHED_RR}
_OTHER_POLICIES = {6: "SCHED_DEADLINE", 7: "SCHED_EXT, of a BPF program"}
_AFFINITY_BYTES = 1024
"""Room for 8192 processors, the most that a distribution's kernel is built for."""


def refuse(name: str, pid: int) -> list[Reason]:
    """What of a process's threads cannot be kept."""
    found = {os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK for tid in procfs.threads(pid)}
    return [
        Reason(
            f"{name}, a thread",
            f"it has {_OTHER_POLICIES.get(policy, f'scheduling policy {policy}')}, which is not kept",
        )
        for policy in sorted(found - _KEPT_POLICIES)
    ]


def stuck(pids: Callable[[], Iterable[tuple[int, int]]], patience: float) -> list[Reason]:
    """The threads that nothing can stop, if that lasts: they stand in an uninterruptible call.

    Args:
        pids: gives the (pid, tid) of every thread, anew at each call.
        patience: seconds to wait for them, while all run on.
    """
    found = {task: waits for task in pids() if (waits := _uninterruptible(*task)) is not None}
    deadline, pause = time.monotonic() + patience, 1e-3
    while found and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        found = {task: waits for task, waits in found.items() if _uninterruptible(*task) == waits}
    return [Reason(f"{describe_process(pid)}, thread {tid}", UNINTERRUPTIBLE, SEE_WHY) for pid, tid in sorted(found)]


def _uninterruptible(pid: int, tid: int) -> int | None:
    """How often a thread in an uninterruptible call had begun to wait; None: it is in no such call."""
    try:
        if procfs.parse_stat(procfs.read(f"/proc/{pid}/task/{tid}/stat")).state != "D":
            return None
        return int(procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))[b"voluntary_ctxt_switches"])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Questions(NamedTuple):
    """The entries of a thread's batch that `describe` reads."""

    tid: int
    altstack: int
    tid_address: int
    name: int
    pdeath: int
    no_new_privs: int
    timer_slack: int
    robust_list: int
    nice: int
    scheduler: int
    affinity: int
    securebits: int
    traits: thread_attributes.Questions


def ask(batch: Batch) -> Questions:
    """What only the thread itself can be asked."""
    return Questions(
        tid=batch.add(NR.gettid),
        altstack=batch.add(NR.sigaltstack, 0, Out(24)),
        tid_address=batch.add(NR.prctl, PR_GET_TID_ADDRESS, Out(8)),
        name=batch.add(NR.prctl, PR_GET_NAME, Out(16)),
        pdeath=batch.add(NR.prctl, PR_GET_PDEATHSIG, Out(4)),
        no_new_privs=batch.add(NR.prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
        timer_slack=batch.add(NR.prctl, PR_GET_TIMERSLACK),
        robust_list=batch.add(NR.get_robust_list, 0, Out(8), Out(8)),
        nice=batch.add(NR.getpriority, 0, 0),
        scheduler=batch.add(NR.sched_getscheduler, 0),
        affinity=batch.add(NR.sched_getaffinity, 0, _AFFINITY_BYTES, Out(_AFFINITY_BYTES)),
        securebits=credentials.ask(batch),
        traits=thread_attributes.ask(batch),
    )


@dataclass
class GrabbedThread:
    """A thread's state as it was taken under the freeze."""

    thread: Thread
    registers: Portable
    xstate: bytes
    rseq: tuple[int, int, int, int]
    pending: list[bytes]
    questions: Questions
    replies: Replies


def portable(pid: int, thread: Thread, waits: Waits) -> Portable:
    """A thread's registers, with what is left of the time that its call may take; its memory is still its own."""
    return x86_64.portable(
        thread.named,
        lambda: waits.waited(pid, thread.tid, thread.stopped_ns),
        lambda address, size: memory.read(pid, address, size),
    )


def describe(grabbed: GrabbedThread, image: pb.Thread) -> None:
    """Fill a thread's part of the image.

    Raises:
        Refused: it has something that is not kept, and of which only itself knew.
    """
    asked, replies = grabbed.questions, grabbed.replies
    if reasons := [
        Reason(f"thread {grabbed.thread.tid}", why) for why in thread_attributes.refuse(asked.traits, replies)
    ]:
        raise Refused("the tree cannot be kept", reasons)
    thread_attributes.describe(asked.traits, replies, image)
    image.tid = replies.result(asked.tid)
    image.name = replies.output(asked.name, 1).split(b"\0")[0]
    image.registers = grabbed.registers.registers.tobytes()
    if grabbed.registers.below:
        image.below, image.below_address = grabbed.registers.below, grabbed.registers.below_address
    image.xstate = grabbed.xstate
    image.sigmask = grabbed.thread.sigmask
    image.pending.extend(grabbed.pending)
    pointer, size, signature, flags = grabbed.rseq
    if pointer:
        image.rseq.pointer, image.rseq.size = pointer, size
        image.rseq.signature, image.rseq.flags = signature, flags
    sp, ss_flags, _, ss_size = struct.unpack("<QiiQ", replies.output(asked.altstack, 1))
    image.altstack.sp, image.altstack.flags, image.altstack.size = sp, ss_flags, ss_size
    image.robust_list, image.robust_list_size = (
        int.from_bytes(replies.output(asked.robust_list, position), "little") for position in (1, 2)
    )
    if replies.result(asked.tid_address) == 0:
        image.clear_child_tid = int.from_bytes(replies.output(asked.tid_address, 1), "little")
    image.pdeath_signal = int.from_bytes(replies.output(asked.pdeath, 1), "little")
    image.no_new_privs = replies.result(asked.no_new_privs) == 1
    image.timer_slack_ns = replies.result(asked.timer_slack)
    image.nice = 20 - replies.result(asked.nice)  # the raw call gives 20 - nice
    image.scheduler = replies.result(asked.scheduler)
    mask = int.from_bytes(replies.output(asked.affinity, 2), "little")
    image.affinity.extend(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


# Restore

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_TIMERSLACK = 29
PR_SET_NO_NEW_PRIVS = 38

_SIGALTSTACK = struct.Struct("<Qi4xQ")  # stack_t
_SS_DISABLE, _SS_AUTODISARM = 2, 1 << 31
_DEFAULT_SLACK_NS = 50_000

_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
_CLONE_THREAD, _CLONE_SYSVSEM = 0x10000, 0x40000
_THREAD = _CLONE_VM | _CLONE_FS | _CLONE_FILES | _CLONE_SIGHAND | _CLONE_THREAD | _CLONE_SYSVSEM
"""What pthread_create asks for; what it asks besides is set later, when the thread is there."""
_CLONE_ARGS = struct.Struct("<11Qi4x")  # struct clone_args (include/uapi/linux/sched.h), then one set_tid
_CLONE_ARGS_SIZE = 88
_SET_TID = 64  # in it


def clone(flags: int, exit_signal: int, tid: int, words: str) -> Call:
    """Make a thread or a process with a chosen id in the caller's PID namespace."""
    content = _CLONE_ARGS.pack(flags, 0, 0, 0, exit_signal, 0, 0, 0, _CLONE_ARGS_SIZE, 1, 0, tid)
    return Call(NR.clone3, (Struct(content, (_SET_TID,)), _CLONE_ARGS_SIZE), tid, words)


def clone_flags(call: Call) -> int:
    """What such a call asks for, as clone(2) has it: flags with the exit signal."""
    (wanted, *_) = call.args
    assert isinstance(wanted, Struct)
    flags, _, _, _, exit_signal, *_ = _CLONE_ARGS.unpack(wanted.content)
    return int(flags | exit_signal)


def faults(thread: pb.Thread) -> Iterator[str]:
    """What in a thread is not as a checkpoint writes it."""
    if len(thread.registers) != 8 * x86_64.REGISTER_COUNT:
        yield f"thread {thread.tid} has {len(thread.registers)} bytes of registers"
    if len(thread.xstate) < x86_64.MIN_XSAVE:
        yield f"thread {thread.tid} has {len(thread.xstate)} bytes of extended registers"
    if any(len(info) != ptrace.SIGINFO_SIZE for info in thread.pending):
        yield f"thread {thread.tid} has pending signals without their information"
    if any(one.which not in thread_attributes.MITIGATIONS for one in thread.speculation):
        yield f"thread {thread.tid} has a mitigation that this version does not know"
    if not thread.clamp_least <= thread.clamp_most <= thread_attributes.FULL:
        yield f"thread {thread.tid} has its utilization clamped to what there is not"


def birth(thread: pb.Thread) -> Call:
    """Make a thread of the process that calls."""
    return clone(_THREAD, 0, thread.tid, f"starting thread {thread.tid}")


@dataclass(frozen=True)
class Bounds:
    """What the restorer may give to threads."""

    processors: frozenset[int]
    """It may run on."""
    nice: int
    """Its own."""
    may_lower_nice: bool
    scheduler: int
    """Its own policy."""
    allowed: thread_attributes.Allowed


def steps(thread: pb.Thread, bounds: Bounds) -> Iterator[Call]:
    """What a thread sets for itself, but for credentials and registers."""
    if thread.robust_list:
        words = "registering its list of robust locks"
        yield Call(NR.set_robust_list, (thread.robust_list, thread.robust_list_size), 0, words)
    stack = thread.altstack
    if stack.size and not stack.flags & _SS_DISABLE:
        content = _SIGALTSTACK.pack(stack.sp, _signed_flags(stack.flags & _SS_AUTODISARM), stack.size)
        yield Call(NR.sigaltstack, (content, 0), 0, "setting its alternate signal stack")
    if thread.rseq.pointer:
        rseq = thread.rseq
        yield Call(NR.rseq, (rseq.pointer, rseq.size, 0, rseq.signature), 0, "registering its restartable sequences")
    yield Call(NR.set_tid_address, (thread.clear_child_tid,), thread.tid, "setting the address cleared at its end")
    yield Call(NR.prctl, (PR_SET_NAME, thread.name[:15] + b"\0"), 0, "setting its name")
    if thread.timer_slack_ns not in (0, _DEFAULT_SLACK_NS):
        yield Call(NR.prctl, (PR_SET_TIMERSLACK, thread.timer_slack_ns), 0, "setting its timer slack")
    processors = bounds.processors.intersection(thread.affinity)
    if processors and processors != bounds.processors:
        mask = sum(1 << cpu for cpu in processors).to_bytes(_AFFINITY_BYTES, "little")
        yield Call(NR.sched_setaffinity, (0, len(mask), mask), 0, "binding it to its processors")
    yield from thread_attributes.steps(thread, bounds.scheduler, bounds.allowed)
    nice = thread.nice if thread.nice > bounds.nice or bounds.may_lower_nice else bounds.nice
    if nice != bounds.nice:
        yield Call(NR.setpriority, (0, 0, thread.nice), 0, f"setting its nice value {thread.nice}")
    yield from thread_attributes.attributes(thread, nice, bounds.allowed)
    if thread.no_new_privs:
        yield Call(NR.prctl, (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0, "giving up new privileges")


def last_steps(thread: pb.Thread) -> Iterator[Call]:
    """What a change of credentials would undo."""
    if thread.pdeath_signal:
        words = f"asking for signal {thread.pdeath_signal} at its parent's end"
        yield Call(NR.prctl, (PR_SET_PDEATHSIG, thread.pdeath_signal), 0, words)
    yield from thread_attributes.last_steps(thread)


def warnings(name: str, thread: pb.Thread, bounds: Bounds) -> Iterator[str]:
    """What of a thread is not as before, in words."""
    if thread.nice < bounds.nice and not bounds.may_lower_nice:
        yield f"{name}: its nice value is {bounds.nice}, was {thread.nice}: lowering it needs a privilege"
    if not bounds.processors.intersection(thread.affinity):
        yield f"{name}: none of the processors that it was bound to is allowed here"
    yield from thread_attributes.warnings(name, thread, bounds.allowed)


def _signed_flags(value: int) -> int:
    return value - (1 << 32) if value >> 31 & 1 else value

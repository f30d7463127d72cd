"""Threads: registers and the whole xsave area, signal masks, and other kernel state of each thread.

Kept: general registers with fs_base and gs_base, xsave area (all that is enabled in XCR0), signal mask, alternate
stack, robust list, clear_child_tid, rseq registration, name, parent-death signal, no_new_privs, timer slack. Other
attributes of the scheduler and prctl(2) are in thread_attributes.py, pending signals in signals.py. An interrupted
system call is kept as ptrace shows it: -ERESTART* in rax and its number in orig_rax, from which the restoring kernel
restarts it (see x86_64.portable).

Refused: 32-bit code, shadow stacks.

Documented in: prctl(2), rseq(2) and Documentation/userspace-api/rseq.rst, set_robust_list(2), sigaltstack(2).
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torpor import procfs
from torpor.arch import x86_64
from torpor.arch.x86_64 import NR, Portable
from torpor.arch.x86_64.transfers import is_rest
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage, Step, ThreadAnswers, ThreadPart
from torpor.remote import memory, transfers
from torpor.remote.batch import Batch, Call, Out, Struct
from torpor.remote.freeze import Thread
from torpor.remote.naming import SEE_WHY, UNINTERRUPTIBLE, describe_process
from torpor.remote.sys import try_syscall
from torpor.remote.waits import Waits

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
PR_SET_NAME, PR_GET_NAME = 15, 16
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39
PR_GET_TID_ADDRESS = 40

_SIGALTSTACK = struct.Struct("<Qi4xQ")  # stack_t
_SS_DISABLE, _SS_AUTODISARM = 2, 1 << 31


def stuck(pids: Callable[[], Iterable[tuple[int, int]]], patience: float) -> list[Reason]:
    """Threads that stay in an uninterruptible call, so that nothing can stop them.

    Args:
        pids: returns the current (pid, tid) of every thread.
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
    """The voluntary context switches of a thread in an uninterruptible call; None if it is in no such call."""
    try:
        if procfs.parse_stat(procfs.read(f"/proc/{pid}/task/{tid}/stat")).state != "D":
            return None
        return int(procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))[b"voluntary_ctxt_switches"])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Asked(NamedTuple):
    """The entries of a thread's batch."""

    tid: int
    altstack: int
    tid_address: int
    name: int
    pdeath: int
    no_new_privs: int
    timer_slack: int
    robust_list: int


def portable(pid: int, thread: Thread, waits: Waits) -> Portable:
    """A thread's registers, with the rest of its call's time limit. Its memory must still be there."""
    transfer = transfers.taken_back(thread.tid, thread.named)
    return x86_64.portable(
        transfer.registers,
        lambda: waits.waited(pid, thread.tid, thread.stopped_ns),
        lambda address, size: memory.read(pid, address, size),
    )._replace(moved=transfer.moved)


class Inherited(NamedTuple):
    """What threads inherit from the restorer."""

    timer_slack_ns: int
    no_new_privs: bool


class ThreadState(ThreadPart[Asked, Inherited]):
    """Registers and other kernel state of each thread."""

    def ask(self, batch: Batch) -> Asked:
        """Query what ptrace does not show."""
        return Asked(
            tid=batch.add(NR.gettid),
            altstack=batch.add(NR.sigaltstack, 0, Out(24)),
            tid_address=batch.add(NR.prctl, PR_GET_TID_ADDRESS, Out(8)),
            name=batch.add(NR.prctl, PR_GET_NAME, Out(16)),
            pdeath=batch.add(NR.prctl, PR_GET_PDEATHSIG, Out(4)),
            no_new_privs=batch.add(NR.prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
            timer_slack=batch.add(NR.prctl, PR_GET_TIMERSLACK),
            robust_list=batch.add(NR.get_robust_list, 0, Out(8), Out(8)),
        )

    def describe(
        self, asked: Asked, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree
    ) -> None:
        """Write all of it."""
        replies = answers.replies
        out.tid = replies.result(asked.tid)
        out.name = replies.output(asked.name, 1).split(b"\0")[0]
        out.registers = answers.registers.registers.tobytes()
        if answers.registers.below:
            out.below, out.below_address = answers.registers.below, answers.registers.below_address
        out.moved = answers.registers.moved
        out.xstate = answers.xstate
        out.sigmask = answers.thread.sigmask
        pointer, size, signature, flags = answers.rseq
        if pointer:
            out.rseq.pointer, out.rseq.size = pointer, size
            out.rseq.signature, out.rseq.flags = signature, flags
        sp, ss_flags, _, ss_size = struct.unpack("<QiiQ", replies.output(asked.altstack, 1))
        out.altstack.sp, out.altstack.flags, out.altstack.size = sp, ss_flags, ss_size
        out.robust_list, out.robust_list_size = (
            int.from_bytes(replies.output(asked.robust_list, position), "little") for position in (1, 2)
        )
        if replies.result(asked.tid_address) == 0:
            out.clear_child_tid = int.from_bytes(replies.output(asked.tid_address, 1), "little")
        out.pdeath_signal = int.from_bytes(replies.output(asked.pdeath, 1), "little")
        out.no_new_privs = replies.result(asked.no_new_privs) == 1
        out.timer_slack_ns = replies.result(asked.timer_slack)

    def validate_form(self, thread: pb.Thread) -> Iterator[str]:
        """Incomplete registers."""
        if len(thread.registers) != 8 * x86_64.REGISTER_COUNT:
            yield f"it has {len(thread.registers)} bytes of registers"
        elif thread.moved and not is_rest(array("Q", thread.registers), thread.moved):
            yield "it is said to have moved a part of the bytes of a call that moves none"
        if len(thread.xstate) < x86_64.MIN_XSAVE:
            yield f"it has {len(thread.xstate)} bytes of extended registers"

    def host(self) -> Inherited:
        """What threads inherit from the restorer."""
        return Inherited(
            timer_slack_ns=try_syscall(NR.prctl, PR_GET_TIMERSLACK, 0, 0, 0, 0),
            no_new_privs=try_syscall(NR.prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1,
        )

    def warnings(self, thread: pb.Thread, host: Inherited) -> Iterator[str]:
        """What cannot be taken back."""
        if host.no_new_privs and not thread.no_new_privs:
            yield "setuid programs give it no rights: the process that wakes it has no_new_privs, which lasts for ever"

    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: Inherited) -> Iterator[Step]:
        """All but the registers, which are set last."""
        yield from (Step(Stage.THREAD, call) for call in _settings(thread, host))
        if thread.pdeath_signal:  # a change of credentials clears it
            words = f"asking for signal {thread.pdeath_signal} at its parent's end"
            call = Call(NR.prctl, (PR_SET_PDEATHSIG, thread.pdeath_signal), 0, words)
            yield Step(Stage.AFTER_CREDENTIALS, call)


def _settings(thread: pb.Thread, host: Inherited) -> Iterator[Call]:
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
    if thread.timer_slack_ns not in (0, host.timer_slack_ns):
        yield Call(NR.prctl, (PR_SET_TIMERSLACK, thread.timer_slack_ns), 0, "setting its timer slack")
    if thread.no_new_privs:
        yield Call(NR.prctl, (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0, "setting no_new_privs")


def _signed_flags(value: int) -> int:
    return value - (1 << 32) if value >> 31 & 1 else value


_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
_CLONE_THREAD, _CLONE_SYSVSEM = 0x10000, 0x40000
_THREAD = _CLONE_VM | _CLONE_FS | _CLONE_FILES | _CLONE_SIGHAND | _CLONE_THREAD | _CLONE_SYSVSEM
"""The flags of pthread_create for sharing; what its other flags do is set when the thread exists."""
_CLONE_ARGS = struct.Struct("<11Qi4x")  # struct clone_args (include/uapi/linux/sched.h), then one set_tid
_CLONE_ARGS_SIZE = 88
_SET_TID = 64  # offset in it


def clone(flags: int, exit_signal: int, tid: int, words: str) -> Call:
    """A call that creates a thread or process with a chosen id in the caller's PID namespace."""
    content = _CLONE_ARGS.pack(flags, 0, 0, 0, exit_signal, 0, 0, 0, _CLONE_ARGS_SIZE, 1, 0, tid)
    return Call(NR.clone3, (Struct(content, (_SET_TID,)), _CLONE_ARGS_SIZE), tid, words)


def clone_flags(call: Call) -> int:
    """The flags of such a call for clone(2), with the exit signal."""
    (wanted, *_) = call.args
    assert isinstance(wanted, Struct)
    flags, _, _, _, exit_signal, *_ = _CLONE_ARGS.unpack(wanted.content)
    return int(flags | exit_signal)


def birth(thread: pb.Thread) -> Call:
    """A call that creates a thread of the calling process."""
    return clone(_THREAD, 0, thread.tid, f"starting thread {thread.tid}")

"""Signals: the actions of a process, and the pending signals of the process and its threads.

Kept: handler, flags, restorer and mask of every action; each pending siginfo_t, of the process and of its threads. The
mask and the alternate stack of a thread are in threads.py.

Documented in: sigaction(2), signal(7), ptrace(2) on PTRACE_PEEKSIGINFO.
"""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterable, Iterator

from torpor.arch.x86_64 import NR
from torpor.errors import Reason, Refused
from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart, Stage, Step, ThreadAnswers, ThreadPart
from torpor.objects.process.texts import Texts
from torpor.remote import ptrace
from torpor.remote.batch import Batch, Call, Out, Replies

_SYNCHRONOUS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGFPE, signal.SIGSYS})
"""The synchronous signals (kernel/signal.c, SYNCHRONOUS_MASK)."""
_WAITING = {True: re.compile(rb"^ShdPnd:\t(\w+)", re.M), False: re.compile(rb"^SigPnd:\t(\w+)", re.M)}

MOST_QUEUED = 10_000
"""Queued signals of a process or of a thread that are kept. The target stands still for 0.4 s while they are read; for
60,000 of them it would be more than a minute (see `ptrace.peek_pending`)."""

KERNEL_SIGACTION = struct.Struct("<QQQQ")
"""struct kernel_sigaction on x86-64: handler, flags, restorer, mask."""


def discard(number: int) -> Iterator[Call]:
    """The calls by which a process discards a signal that building the tree has caused, before its action is set."""
    for action in (signal.SIG_IGN, signal.SIG_DFL):
        words = f"discarding a pending signal {number}"
        yield Call(NR.rt_sigaction, (number, KERNEL_SIGACTION.pack(action, 0, 0, 0), 0, 8), 0, words)


_P_PID = 1
_WNOHANG, _WSTOPPED, _WNOWAIT, _WALL = 0x1, 0x2, 0x01000000, 0x40000000


def ask_stop(batch: Batch, pid: int) -> int:
    """Let a parent query whether it was told that its child `pid` has stopped; this does not consume the report."""
    return batch.add(NR.waitid, _P_PID, pid, Out(ptrace.SIGINFO_SIZE), _WNOHANG | _WSTOPPED | _WNOWAIT | _WALL, 0)


def stop_was_reported(replies: Replies, entry: int) -> bool:
    """Whether the parent was told, by the result of `ask_stop`."""
    return replies.result(entry) == 0 and not any(replies.output(entry, 2)[:4])  # si_signo


def pending(status: bytes, pid: int, whose: str, *, shared: bool) -> list[bytes]:
    """The siginfo_t of each pending signal: of one thread, or with `shared` of the whole process.

    If a standard signal arrived while the user's queue was full (RLIMIT_SIGPENDING), the kernel stores only its number,
    and delivers a siginfo_t without a sender (kernel/signal.c, collect_signal).

    Args:
        status: the text of the process's /proc/PID/status, or of the thread's.
        pid: of the frozen process or thread.
        whose: its name, for people.
        shared: see above.

    Raises:
        Refused: there are more than `MOST_QUEUED`.
    """
    queued = ptrace.peek_pending(pid, shared=shared, most=MOST_QUEUED)
    if len(queued) > MOST_QUEUED:
        why = (
            f"it has more than {MOST_QUEUED} queued signals, and reading them would stop it for too long; "
            "try again once it has received some of them"
        )
        raise Refused(f"{whose} cannot be kept", [Reason(whose, why)])
    found = _WAITING[shared].search(status)
    assert found
    if mask := int(found[1], 16):
        known = {_number(info) for info in queued}
        nameless = (number for number in range(1, mask.bit_length() + 1) if mask >> (number - 1) & 1)
        queued += [_nobodys(number) for number in nameless if number not in known and number != signal.SIGKILL]
    return queued


def waiting(statuses: Iterable[bytes]) -> int:
    """The signals that are pending for a process or any of its threads, by their statuses; bit 0 is number 1."""
    found = 0
    for status in statuses:
        for pattern in _WAITING.values():
            if of := pattern.search(status):
                found |= int(of[1], 16)
    return found


def _nobodys(number: int) -> bytes:
    return number.to_bytes(4, "little").ljust(ptrace.SIGINFO_SIZE, b"\0")  # si_code is SI_USER


class Actions(ProcessPart[dict[int, int], None]):
    """The process's signal actions."""

    def ask(self, batch: Batch, texts: Texts) -> dict[int, int]:
        """One entry for each signal. A default action may have flags and a mask, too."""
        return {number: batch.add(NR.rt_sigaction, number, 0, Out(KERNEL_SIGACTION.size), 8) for number in range(1, 65)}

    def describe(self, asked: dict[int, int], answers: Answers, out: pb.Process) -> None:
        """Actions that differ from the initial ones."""
        for number, entry in asked.items():
            handler, flags, restorer, mask = KERNEL_SIGACTION.unpack(answers.replies.output(entry, 2))
            if handler or flags or mask:
                out.actions.add(signal=number, handler=handler, flags=flags, restorer=restorer, mask=mask)

    def host(self) -> None:
        """The calls depend on nothing."""

    def calls(self, process: pb.Process, host: None) -> Iterator[Step]:
        """Set the actions, and discard the signals that building the tree has caused.

        If SIGTRAP is blocked or ignored, the kernel resets its action at an int3, which the restorer's tables use to
        report their end. So a thread ignores SIGTRAP only at the very end.
        """
        default = KERNEL_SIGACTION.pack(0, 0, 0, 0)
        forget = Call(NR.rt_sigaction, (signal.SIGCHLD, default, 0, 8), 0, "discarding pending SIGCHLD")
        yield Step(Stage.ALL_THREADS, forget)
        for action in process.actions:
            words = f"setting the action of signal {action.signal}"
            yield Step(Stage.ALL_THREADS, Call(NR.rt_sigaction, (action.signal, _packed(action), 0, 8), 0, words))
            if action.signal == signal.SIGTRAP and action.handler == signal.SIG_IGN:
                again = Call(NR.rt_sigaction, (signal.SIGTRAP, _packed(action), 0, 8), 0, "ignoring SIGTRAP")
                yield Step(Stage.RELEASE, again)


class Queue(ProcessPart[None, None]):
    """Signals that are pending for the whole process."""

    def ask(self, batch: Batch, texts: Texts) -> None:
        """No calls: a tracer reads them (see `pending`)."""

    def describe(self, asked: None, answers: Answers, out: pb.Process) -> None:
        """Write all of them."""
        out.pending.extend(answers.pending)

    def validate_form(self, process: pb.Process) -> Iterator[str]:
        """Entries that are not a siginfo_t."""
        if any(len(info) != ptrace.SIGINFO_SIZE for info in process.pending):
            yield "it has pending signals without their information"

    def host(self) -> None:
        """The calls depend on nothing."""

    def calls(self, process: pb.Process, host: None) -> Iterator[Step]:
        """The process queues them to itself: to others it may not send signals in the kernel's name."""
        for info in process.pending:
            if stage := _when(info, Stage.ALL_THREADS):
                yield Step(stage, _to_process(process, info))


class ThreadQueue(ThreadPart[None, None]):
    """Signals that are pending for one thread."""

    def ask(self, batch: Batch) -> None:
        """No calls: a tracer reads them (see `pending`)."""

    def describe(
        self, asked: None, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree
    ) -> None:
        """Write all of them."""
        out.pending.extend(answers.pending)

    def validate_form(self, thread: pb.Thread) -> Iterator[str]:
        """Entries that are not a siginfo_t."""
        if any(len(info) != ptrace.SIGINFO_SIZE for info in thread.pending):
            yield "it has pending signals without their information"

    def host(self) -> None:
        """The calls depend on nothing."""

    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: None) -> Iterator[Step]:
        """The thread queues them to itself."""
        for info in thread.pending:
            if stage := _when(info, Stage.BEFORE_CREDENTIALS):
                yield Step(stage, _to_thread(process, thread, info))


def _when(info: bytes, usual: Stage) -> Stage | None:
    """The stage in which a signal is queued again.

    The kernel delivers a pending synchronous signal first, even if it is blocked (kernel/signal.c,
    dequeue_synchronous_signal): it would arrive at the int3 of the restorer's table. A SIGSTOP is sent when its
    receiver is released.
    """
    if _number(info) in _SYNCHRONOUS:
        return Stage.RELEASE
    return None if _number(info) == signal.SIGSTOP else usual


def _packed(action: pb.SigAction) -> bytes:
    return KERNEL_SIGACTION.pack(action.handler, action.flags, action.restorer, action.mask)


def stops(pending: Iterable[bytes]) -> bool:
    """Whether a SIGSTOP is pending. It cannot be blocked: it is delivered when its receiver is released."""
    return any(_number(info) == signal.SIGSTOP for info in pending)


def _to_process(process: pb.Process, info: bytes) -> Call:
    words = f"queueing signal {_number(info)} to the process"
    return Call(NR.rt_sigqueueinfo, (process.pid, _number(info), info), 0, words)


def _to_thread(process: pb.Process, thread: pb.Thread, info: bytes) -> Call:
    words = f"queueing signal {_number(info)} to the thread"
    return Call(NR.rt_tgsigqueueinfo, (process.pid, thread.tid, _number(info), info), 0, words)


def _number(info: bytes) -> int:
    return int.from_bytes(info[:4], "little")  # si_signo

"""Signals of a process: its actions and what is queued to it as a whole.

Kept: handler, flags, restorer and mask of every action that is not the default; each queued siginfo_t. What belongs to
single threads (mask, alternate stack, their queue) is in threads.py.

Documented in: sigaction(2), signal(7), ptrace(2) on PTRACE_PEEKSIGINFO.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator

from torpor.image import image_pb2 as pb
from torpor.remote import ptrace
from torpor.remote.batch import Batch, Call, Out, Replies
from torpor.remote.x86_64 import NR

KERNEL_SIGACTION = struct.Struct("<QQQQ")
"""struct kernel_sigaction on x86-64: handler, flags, restorer, mask."""


def ask(batch: Batch, not_default: int) -> dict[int, int]:
    """Ask for the actions of the signals in a mask (SigIgn and SigCgt of a status); the entry of each signal."""
    return {
        number: batch.add(NR.rt_sigaction, number, 0, Out(KERNEL_SIGACTION.size), 8)
        for number in range(1, 65)
        # SIGCHLD's default action may have flags: SA_NOCLDWAIT, SA_NOCLDSTOP.
        if not_default >> (number - 1) & 1 or number == signal.SIGCHLD
    }


_P_PID = 1
_WNOHANG, _WSTOPPED, _WNOWAIT = 0x1, 0x2, 0x01000000


def ask_stop(batch: Batch, pid: int) -> int:
    """Ask a parent whether it is still to be told that its child `pid` was stopped; changes nothing of that."""
    return batch.add(NR.waitid, _P_PID, pid, Out(ptrace.SIGINFO_SIZE), _WNOHANG | _WSTOPPED | _WNOWAIT, 0)


def stop_was_told(replies: Replies, entry: int) -> bool:
    """The answer to `ask_stop`."""
    return replies.result(entry) == 0 and not any(replies.output(entry, 2)[:4])  # si_signo


def pending(pid: int) -> list[bytes]:
    """The signals queued to the whole process."""
    return ptrace.peek_pending(pid, shared=True)


def describe(asked: dict[int, int], replies: Replies, queued: list[bytes], image: pb.Process) -> None:
    """Fill the signal actions and the queue of a process."""
    image.pending.extend(queued)
    for number, entry in asked.items():
        handler, flags, restorer, mask = KERNEL_SIGACTION.unpack(replies.output(entry, 2))
        image.actions.add(signal=number, handler=handler, flags=flags, restorer=restorer, mask=mask)


# Restore

IGNORED = KERNEL_SIGACTION.pack(1, 0, 0, 0)
"""The action of a signal that is ignored."""


def steps(process: pb.Process) -> Iterator[Call]:
    """Set the actions that are not the default, and forget the signals that building the tree has caused."""
    default = KERNEL_SIGACTION.pack(0, 0, 0, 0)
    yield Call(NR.rt_sigaction, (signal.SIGCHLD, default, 0, 8), 0, "forgetting what was told of children")
    for action in process.actions:
        content = KERNEL_SIGACTION.pack(action.handler, action.flags, action.restorer, action.mask)
        words = f"setting the action of signal {action.signal}"
        yield Call(NR.rt_sigaction, (action.signal, content, 0, 8), 0, words)


def queue(process: pb.Process) -> Iterator[Call]:
    """Queue the signals of the whole process again, by itself: only to itself may it send in the kernel's name."""
    for info in process.pending:
        words = f"queueing signal {_number(info)} to the process"
        yield Call(NR.rt_sigqueueinfo, (process.pid, _number(info), info), 0, words)


def queue_to_thread(process: pb.Process, thread: pb.Thread) -> Iterator[Call]:
    """Queue the signals of one thread again, by itself."""
    for info in thread.pending:
        words = f"queueing signal {_number(info)} to the thread"
        yield Call(NR.rt_tgsigqueueinfo, (process.pid, thread.tid, _number(info), info), 0, words)


def _number(info: bytes) -> int:
    return int.from_bytes(info[:4], "little")  # si_signo

"""ptrace(2), one function per request, and the waits that go with it.

ptrace belongs to one thread of the tracer: the thread that seized makes every later call and every wait.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from array import array
from collections.abc import Iterable

from torpor import procfs
from torpor.arch.x86_64 import NR, REGISTER_COUNT
from torpor.remote.sys import Argument, Words, syscall, try_syscall

# Requests (include/uapi/linux/ptrace.h).
POKETEXT = 4
CONT = 7
KILL = 8
DETACH = 17
SYSCALL = 24
GETREGS = 12
SETREGS = 13
SETOPTIONS = 0x4200
GETEVENTMSG = 0x4201
GETSIGINFO = 0x4202
GETREGSET = 0x4204
SETREGSET = 0x4205
SEIZE = 0x4206
INTERRUPT = 0x4207
PEEKSIGINFO = 0x4209
GETSIGMASK = 0x420A
SETSIGMASK = 0x420B
SECCOMP_GET_FILTER = 0x420C
SECCOMP_GET_METADATA = 0x420D
GET_RSEQ_CONFIGURATION = 0x420F
GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211

PEEKSIGINFO_SHARED = 1
SIGINFO_SIZE = 128

# Options.
O_TRACESYSGOOD = 0x1
O_TRACEFORK = 0x2
O_TRACEVFORK = 0x4
O_TRACECLONE = 0x8
O_TRACEEXEC = 0x10
O_TRACEEXIT = 0x40
O_EXITKILL = 0x100000
O_SUSPEND_SECCOMP = 0x200000
"""In effect as long as the tracer lives and stays attached (4.3; needs CAP_SYS_ADMIN in the initial user namespace)."""

# Events, in bits 16 and up of a wait status.
EVENT_FORK = 1
EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXEC = 4
EVENT_EXIT = 6
EVENT_STOP = 128

NT_X86_XSTATE = 0x202
"""The xsave area in its standard, not compacted, format (arch/x86/kernel/fpu/regset.c)."""

SYSCALL_STOP = signal.SIGTRAP | 0x80
"""The stop signal of a system-call stop under O_TRACESYSGOOD."""

WALL = 0x40000000
_MAX_XSAVE = 1 << 16
_SPINS = 200
"""How often a wait polls before it sleeps: a stop normally takes tens of microseconds."""
_SHORT = 50e-6
_LOOK_EVERY = 100


def request(what: int, tid: int, addr: Argument = 0, data: Argument = 0) -> int:
    """Make one ptrace request.

    Raises:
        OSError: ESRCH when the thread is gone or not stopped, EPERM when tracing is forbidden.
    """
    return syscall(NR.ptrace, what, tid, addr, data)


def seize(tid: int, options: int) -> None:
    """Attach to a thread without stopping it."""
    request(SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop; `wait` sees EVENT_STOP."""
    request(INTERRUPT, tid)


def resume(tid: int, how: int = CONT, sig: int = 0) -> None:
    """Resume a stopped thread: CONT, or SYSCALL to stop at the next entry to or exit from a system call."""
    request(how, tid, 0, sig)


def detach(tasks: Iterable[tuple[int, int]]) -> None:
    """Detach from stopped threads, each with a signal that is delivered to it (0: none).

    A thread that was killed meanwhile is waited for: its parent cannot reap a zombie before its tracer has waited for
    it.

    Args:
        tasks: thread ids and signals; leaders before their threads, since a leader's exit is reported last.
    """
    gone: list[int] = []
    failed = 0
    for tid, sig in tasks:
        result = try_syscall(NR.ptrace, DETACH, tid, 0, sig)
        if result == -errno.ESRCH and procfs.is_ending(tid, tid):
            gone.append(tid)
        elif result < 0:
            failed = failed or result  # detach the others all the same
    for tid in reversed(gone):
        wait_end(tid)
    if failed:
        raise OSError(-failed, os.strerror(-failed), "ptrace")


def poke(tid: int, address: int, word: int) -> None:
    """Write 8 bytes of a stopped thread's memory, even if it is read-only: the process gets a private copy of the page.

    Raises:
        OSError: EIO if nothing is mapped there.
    """
    request(POKETEXT, tid, address, word)


def event_message(tid: int) -> int:
    """The message of the event that a thread is stopped at: for a clone the child's id, in our PID namespace."""
    message = array("Q", [0])
    syscall(NR.ptrace, GETEVENTMSG, tid, 0, message)
    return message[0]


def get_registers(tid: int) -> array[int]:
    """The general registers, indexed by x86_64's register numbers."""
    registers = array("Q", bytes(8 * REGISTER_COUNT))
    syscall(NR.ptrace, GETREGS, tid, 0, registers)
    return registers


def set_registers(tid: int, registers: array[int]) -> None:
    """Set the general registers."""
    syscall(NR.ptrace, SETREGS, tid, 0, registers)


def get_xstate(tid: int) -> bytes:
    """The thread's xsave area: x87, SSE, AVX, AVX-512, PKRU, AMX, all that is enabled in XCR0."""
    xstate = bytearray(_MAX_XSAVE)
    iov = Words(xstate, len(xstate))
    syscall(NR.ptrace, GETREGSET, tid, NT_X86_XSTATE, iov)
    return bytes(memoryview(xstate)[: iov[1]])


def set_xstate(tid: int, xstate: bytes) -> None:
    """Set the thread's xsave area."""
    syscall(NR.ptrace, SETREGSET, tid, NT_X86_XSTATE, Words(xstate, len(xstate)))


def get_sigmask(tid: int) -> int:
    """The blocked signals, bit 0 for signal 1; the saved mask if a call has replaced the mask for a while."""
    mask = array("Q", [0])
    syscall(NR.ptrace, GETSIGMASK, tid, 8, mask)
    return mask[0]


def set_sigmask(tid: int, mask: int) -> None:
    """Set the blocked signals."""
    word = array("Q", [mask])
    syscall(NR.ptrace, SETSIGMASK, tid, 8, word)


def get_rseq(tid: int) -> tuple[int, int, int, int]:
    """The thread's rseq registration: pointer (0: none), size, signature, flags.

    Raises:
        OSError: EIO where the kernel lacks the request (before 5.13, or without CONFIG_RSEQ).
    """
    answer = array("Q", [0, 0, 0])
    syscall(NR.ptrace, GET_RSEQ_CONFIGURATION, tid, 24, answer)
    return answer[0], answer[1] & 0xFFFFFFFF, answer[1] >> 32, answer[2] & 0xFFFFFFFF


def dispatches_calls(tid: int) -> bool:
    """Whether the thread uses syscall user dispatch (prctl 59), which turns its system calls into signals."""
    # struct ptrace_sud_config { u64 mode, selector, offset, len }
    answer = array("Q", [0, 0, 0, 0])
    result = try_syscall(NR.ptrace, GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, answer)
    if result == -errno.EIO:
        return False  # no such request before 6.4: the state cannot be read, and few programs but Wine use it
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return answer[0] != 0


def get_seccomp_filter(tid: int, number: int) -> tuple[bytes, int]:
    """One of the thread's seccomp filters (0 is the oldest): its struct sock_filters, and SECCOMP_FILTER_FLAG_*.

    Raises:
        OSError: EINVAL if the kernel keeps no readable copy (CONFIG_CHECKPOINT_RESTORE), or EACCES.
    """
    code = bytearray(8 * request(SECCOMP_GET_FILTER, tid, number))
    request(SECCOMP_GET_FILTER, tid, number, code)
    metadata = array("Q", [number, 0])  # struct seccomp_metadata
    request(SECCOMP_GET_METADATA, tid, 16, metadata)
    return bytes(code), metadata[1]


def get_siginfo(tid: int) -> bytes:
    """The siginfo_t of the signal-delivery-stop the thread is in."""
    info = bytearray(SIGINFO_SIZE)
    syscall(NR.ptrace, GETSIGINFO, tid, 0, info)
    return bytes(info)


def peek_pending(tid: int, *, shared: bool, most: int) -> list[bytes]:
    """The siginfo_t of each pending signal: the thread's own, or with `shared` the whole process's.

    The kernel looks for each from the start of the queue (kernel/ptrace.c, ptrace_peek_siginfo), so that the time grows
    with the square of their number. With more than `most` pending, this reads no further; the result is then longer.
    """
    found: list[bytes] = []
    room = 32
    infos = bytearray(SIGINFO_SIZE * room)
    while True:
        # struct ptrace_peeksiginfo_args { u64 off; u32 flags; s32 nr; }
        arguments = array("Q", [len(found), (PEEKSIGINFO_SHARED if shared else 0) | room << 32])
        got = syscall(NR.ptrace, PEEKSIGINFO, tid, arguments, infos)
        found += [bytes(infos[k * SIGINFO_SIZE : (k + 1) * SIGINFO_SIZE]) for k in range(got)]
        if got < room or len(found) > most:
            return found


def poll(tid: int) -> int | None:
    """The wait status of a thread, if one is available; does not wait.

    Raises:
        ChildProcessError: the thread is gone.
    """
    found, status = os.waitpid(tid, WALL | os.WNOHANG)
    return status if found else None


def wait(tid: int, deadline: float) -> int:
    """Wait for the next wait status of `tid` until time.monotonic() reaches `deadline`.

    No wait with a time limit leaves the tracer's other children alone. So this polls for as long as a stop normally
    takes (tens of microseconds), and then sleeps between polls, longer and longer.

    Raises:
        TimeoutError: it did not stop in time.
        ChildProcessError: the thread is gone.
    """
    spins = 0
    pause = 20e-6
    while True:
        status = poll(tid)
        if status is not None:
            return status
        spins += 1
        if spins < 200:
            os.sched_yield()
            continue
        if time.monotonic() > deadline:
            raise TimeoutError(f"thread {tid} does not stop")
        time.sleep(pause)
        pause = min(pause * 2, 2e-3)


def wait_surely(tid: int) -> int:
    """Wait for the next wait status of a thread that runs our calls, and so must stop or end soon.

    Raises:
        ChildProcessError: the thread is gone, or it has ended: a leader's exit is reported only after its threads'.
    """
    spins = 0
    while (status := poll(tid)) is None:
        spins += 1
        if spins < _SPINS:
            os.sched_yield()
            continue
        time.sleep(_SHORT)
        if spins % _LOOK_EVERY == 0 and has_ended(tid):
            # It may have ended after the last poll: then its status is available now.
            if (status := poll(tid)) is not None:
                return status
            raise ChildProcessError(errno.ECHILD, f"thread {tid} has ended")
    return status


def wait_trapped(tid: int) -> None:
    """Wait until a thread that was asked to stop is at a stop. Its wait status is not taken.

    Raises:
        ChildProcessError: the thread has ended.
    """
    while True:
        try:
            event_message(tid)  # of a thread that runs it cannot be asked for
        except ProcessLookupError:
            if has_ended(tid):
                raise ChildProcessError(errno.ECHILD, f"thread {tid} has ended") from None
            time.sleep(_SHORT)
        else:
            return


def has_ended(tid: int) -> bool:
    """Whether a thread is a zombie or gone."""
    try:
        return procfs.parse_stat(procfs.read(f"/proc/{tid}/stat")).state in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_end(tid: int) -> None:
    """Wait for the exit of a thread that is ending, and skip stops that were not yet reported.

    A leader's exit is reported after its threads': wait for those first.
    """
    while True:
        try:
            _, status = os.waitpid(tid, WALL)
        except ChildProcessError:
            return  # we do not trace it any more
        if not os.WIFSTOPPED(status):
            return


def stop_signal(status: int) -> int:
    """The stop signal of a wait status, without the event."""
    return (status >> 8) & 0xFF


def event(status: int) -> int:
    """The ptrace event of a wait status, 0 for none."""
    return status >> 16

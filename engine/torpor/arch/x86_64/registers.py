"""General registers, and system calls that were interrupted: restarted here or in another task."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import NamedTuple

from torpor.arch.x86_64.system_calls import NR

# struct user_regs_struct (arch/x86/include/asm/user_64.h): indexes of its 27 words.
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI = range(15)
ORIG_RAX, RIP, CS, EFLAGS, RSP, SS, FS_BASE, GS_BASE, DS, ES, FS, GS = range(15, 27)
REGISTER_COUNT = 27

WORD = (1 << 64) - 1
TASK_SIZE = (1 << 47) - 4096
"""The end of the address space without five-level page tables; with them, only by request of the program."""
RED_ZONE = 128
"""Bytes below rsp that belong to the running function (System V ABI)."""

# Results that the kernel keeps for itself (include/linux/errno.h).
ERESTARTSYS = 512
ERESTARTNOINTR = 513
ERESTARTNOHAND = 514
ERESTART_RESTARTBLOCK = 516
EINTR = 4
TIMER_ABSTIME = 1

# Calls that end with EINTR although no handler runs when a thread is stopped in them (signal(7)), and the register
# with their time limit. Those without a limit are issued again, as a program that knows nothing of the stop expects;
# the others end as the kernel has it, since what is left of their time is not known.
_NEVER_RESTARTED: dict[int, tuple[int, tuple[int, ...]]] = {
    NR.epoll_wait: (R10, (0xFFFFFFFF, WORD)),  # an int of -1
    NR.epoll_pwait: (R10, (0xFFFFFFFF, WORD)),
    NR.epoll_pwait2: (R10, (0,)),  # a null pointer
    NR.rt_sigtimedwait: (RDX, (0,)),
    NR.semop: (ORIG_RAX, (NR.semop,)),  # it has none
    NR.semtimedop: (R10, (0,)),
}
"""By call: the register with its limit, and what there means none."""

# Calls whose interruption leaves a restart block (kernel: set_restart_fn).
_WITH_RESTART_BLOCK = frozenset({NR.poll, NR.nanosleep, NR.futex, NR.clock_nanosleep})

# Where calls with a relative limit have it: a number of milliseconds, or the address of a struct timespec.
_MILLISECONDS: dict[int, int] = {NR.poll: RDX, NR.epoll_wait: R10, NR.epoll_pwait: R10}
_TIMESPEC: dict[int, int] = {
    NR.nanosleep: RDI,
    NR.clock_nanosleep: RDX,
    NR.futex: R10,
    NR.rt_sigtimedwait: RDX,
    NR.epoll_pwait2: R10,
    NR.semtimedop: R10,
}
TIMED_CALLS = frozenset({*_MILLISECONDS, *_TIMESPEC, NR.restart_syscall})
"""Calls of which it matters for how long they had been waiting."""
_FUTEX_WAIT = 0
_FUTEX_COMMAND = 0x7F
_TIMESPEC_LAYOUT = struct.Struct("<qq")

SYSCALL_RET = b"\x0f\x05\xc3"
"""``syscall; ret``"""
SIGRETURN_STUBS = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
"""``mov $15, %rax; syscall``, as glibc and others write it (gdb knows signal frames by these bytes)."""
SYSCALL = b"\x0f\x05"


def signed(value: int) -> int:
    """A register's word as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def in_system_call(registers: array[int]) -> bool:
    """Whether the thread was stopped in a system call that has not returned to it."""
    return signed(registers[ORIG_RAX]) >= 0 and -ERESTART_RESTARTBLOCK <= signed(registers[RAX]) <= -ERESTARTSYS


def keep_waiting(registers: array[int]) -> bool:
    """Turn an EINTR that our stop has caused into a restart of a call that waits without a limit; whether it was one.

    Done to the target as well: epoll_wait would otherwise end early at each checkpoint. If a signal with a
    handler is pending, the kernel turns the restart into EINTR again (arch/x86/kernel/signal.c, handle_signal).
    """
    if signed(registers[RAX]) == -EINTR and registers[ORIG_RAX] in _NEVER_RESTARTED:
        limit, none = _NEVER_RESTARTED[registers[ORIG_RAX]]
        if registers[limit] in none:
            registers[RAX] = -ERESTARTNOHAND & WORD
            return True
    return False


def was_restarted(registers: array[int]) -> bool:
    """Whether the interrupted call had been interrupted before: then only the kernel knows which one it is."""
    return registers[ORIG_RAX] == NR.restart_syscall and signed(registers[RAX]) == -ERESTART_RESTARTBLOCK


def recover_call(registers: array[int], code: bytes) -> None:
    """Put the number of a call that was restarted once already into orig_rax again.

    After one restart the kernel shows restart_syscall there. The arguments are untouched, and C libraries load the
    number right before the call: ``mov $nr, %eax; syscall``. Where it is not so, restart_syscall stays, which ends
    the call with EINTR in a task without the restart block.

    Args:
        registers: changed in place.
        code: the 7 bytes before rip.
    """
    if code[:1] == b"\xb8" and code[5:] == SYSCALL:
        number = int.from_bytes(code[1:5], "little")
        if number in _WITH_RESTART_BLOCK:
            registers[ORIG_RAX] = number


class Portable(NamedTuple):
    """A thread's registers as another task can take them up."""

    registers: array[int]
    below: bytes = b""
    """To be put below the red zone, at `below_address`: the limit of its call, which the registers point to."""

    @property
    def below_address(self) -> int:
        """Where `below` belongs."""
        return (self.registers[RSP] - RED_ZONE - len(self.below)) & ~15


def portable(registers: array[int], waited: Callable[[], int | None], read: Callable[[int, int], bytes]) -> Portable:
    """Make registers that need nothing which only the kernel has: restart blocks are not carried over.

    -ERESTARTNOHAND with the original call makes the kernel issue the call again, or end it with EINTR if a
    handler is to run: what -ERESTART_RESTARTBLOCK means. Its limit becomes what is left of it; where nobody can tell,
    it begins anew, or ends with EINTR if that is what the kernel gave. The changed argument registers are dead to a
    C library once its call has returned.

    Args:
        registers: as ptrace shows them; not changed.
        waited: tells for how many nanoseconds the thread had been in its call, None if not known.
        read: gives memory of the thread: address, size.
    """
    result = array("Q", registers)
    call = result[ORIG_RAX]
    blocked = signed(result[RAX]) == -ERESTART_RESTARTBLOCK
    ended = signed(result[RAX]) == -EINTR and call in _NEVER_RESTARTED
    if signed(call) < 0 or not (blocked or ended):
        return Portable(result)
    time = None if _is_absolute(result) else waited()
    if ended and time is None:
        return Portable(result)
    result[RAX] = -ERESTARTNOHAND & WORD
    if time and call in _MILLISECONDS:
        limit = result[_MILLISECONDS[call]] & 0xFFFFFFFF
        if limit < 1 << 31:  # else it is negative: no limit
            result[_MILLISECONDS[call]] = max(limit - time // 1_000_000, 0)
    elif time and call in _TIMESPEC and result[_TIMESPEC[call]]:
        seconds, nanoseconds = _TIMESPEC_LAYOUT.unpack(read(result[_TIMESPEC[call]], _TIMESPEC_LAYOUT.size))
        left = max(seconds * 1_000_000_000 + nanoseconds - time, 0)
        moved = Portable(result, _TIMESPEC_LAYOUT.pack(left // 1_000_000_000, left % 1_000_000_000))
        result[_TIMESPEC[call]] = moved.below_address
        return moved
    return Portable(result)


def _is_absolute(registers: array[int]) -> bool:
    """Whether the limit of the call is a point in time: it stays what it is."""
    if registers[ORIG_RAX] == NR.clock_nanosleep:
        return bool(registers[RSI] & TIMER_ABSTIME)
    return registers[ORIG_RAX] == NR.futex and registers[RSI] & _FUTEX_COMMAND != _FUTEX_WAIT


def restarted(registers: array[int]) -> array[int]:
    """The registers for a return through a signal frame, where the kernel does no restart: it is done in them.

    rt_sigreturn voids the restart block (restore_sigcontext), so a call that has one is issued anew.
    """
    result = array("Q", registers)
    if in_system_call(registers):
        result[RAX] = registers[ORIG_RAX]
        result[RIP] = registers[RIP] - 2
    return result

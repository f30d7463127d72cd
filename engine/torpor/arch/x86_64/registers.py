"""General registers, and interrupted system calls: how they are restarted here or in another task."""

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
ARGUMENTS = (RDI, RSI, RDX, R10, R8, R9)
"""The arguments of a system call."""

WORD = (1 << 64) - 1
TASK_SIZE = (1 << 47) - 4096
"""The end of the address space without five-level page tables. With them a program must ask for higher addresses."""
RED_ZONE = 128
"""Bytes below rsp that belong to the running function (System V ABI)."""

# Results that never leave the kernel (include/linux/errno.h).
ERESTARTSYS = 512
ERESTARTNOINTR = 513
ERESTARTNOHAND = 514
ERESTART_RESTARTBLOCK = 516
EINTR = 4
TIMER_ABSTIME = 1

# Calls that a stop ends with EINTR although no handler runs (signal(7)), and the register with their time limit. A call
# without a limit is issued again, as a program that knows nothing of the stop expects. The others end with EINTR, as
# the kernel has it, if the rest of their time is unknown. The last three do so only where the kernel does not write the
# rest of their time: in a thread with STICKY_TIMEOUTS (personality(2)), or if the limit lies in memory that cannot be
# written (fs/select.c, poll_select_finish()).
_NEVER_RESTARTED: dict[int, tuple[int, tuple[int, ...]]] = {
    NR.epoll_wait: (R10, (0xFFFFFFFF, WORD)),  # an int of -1
    NR.epoll_pwait: (R10, (0xFFFFFFFF, WORD)),
    NR.epoll_pwait2: (R10, (0,)),  # a null pointer
    NR.rt_sigtimedwait: (RDX, (0,)),
    NR.semop: (ORIG_RAX, (NR.semop,)),  # it has no limit
    NR.semtimedop: (R10, (0,)),
    NR.select: (R8, (0,)),
    NR.pselect6: (R8, (0,)),
    NR.ppoll: (RDX, (0,)),
}
"""For each call the register with its limit, and the values that mean no limit."""

# Calls whose interruption leaves a restart block (kernel: set_restart_fn).
_WITH_RESTART_BLOCK = frozenset({NR.poll, NR.nanosleep, NR.futex, NR.clock_nanosleep})

# Calls with a relative limit and the register that has it: a number of milliseconds, or the address of a struct
# timespec or timeval.
_MILLISECONDS: dict[int, int] = {NR.poll: RDX, NR.epoll_wait: R10, NR.epoll_pwait: R10}
_TIMESPEC: dict[int, int] = {
    NR.nanosleep: RDI,
    NR.clock_nanosleep: RDX,
    NR.futex: R10,
    NR.rt_sigtimedwait: RDX,
    NR.epoll_pwait2: R10,
    NR.semtimedop: R10,
    NR.select: R8,
    NR.pselect6: R8,
    NR.ppoll: RDX,
}
_IN_MICROSECONDS = frozenset({NR.select})
TIMED_CALLS = frozenset({*_MILLISECONDS, *_TIMESPEC, NR.restart_syscall})
"""Calls for which the time that they have waited must be known."""
_FUTEX_WAIT = 0
_FUTEX_COMMAND = 0x7F
_TIMESPEC_LAYOUT = struct.Struct("<qq")

SYSCALL_RET = b"\x0f\x05\xc3"
"""``syscall; ret``"""
SIGRETURN_STUBS = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
"""``mov $15, %rax; syscall``, as glibc and others write it (gdb knows signal frames by these bytes)."""
SYSCALL = b"\x0f\x05"


def signed(value: int) -> int:
    """A register's value as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def in_system_call(registers: array[int]) -> bool:
    """Whether the thread was stopped in a system call that has not returned to it."""
    return signed(registers[ORIG_RAX]) >= 0 and -ERESTART_RESTARTBLOCK <= signed(registers[RAX]) <= -ERESTARTSYS


def ended_early(registers: array[int]) -> bool:
    """Whether a stop ended the thread's call with EINTR although no handler runs."""
    return signed(registers[RAX]) == -EINTR and registers[ORIG_RAX] in _NEVER_RESTARTED


def keep_waiting(registers: array[int]) -> bool:
    """If our stop ended a call without a time limit with EINTR, turn that into a restart. Returns whether it did.

    This is done to the target as well: otherwise epoll_wait would end early at each checkpoint. If a signal with a
    handler is pending, the kernel turns the restart into EINTR again (arch/x86/kernel/signal.c, handle_signal).
    """
    if ended_early(registers):
        limit, none = _NEVER_RESTARTED[registers[ORIG_RAX]]
        if registers[limit] in none:
            registers[RAX] = -ERESTARTNOHAND & WORD
            return True
    return False


def was_restarted(registers: array[int]) -> bool:
    """Whether the interrupted call had been interrupted before: then only the kernel knows which call it is."""
    return registers[ORIG_RAX] == NR.restart_syscall and signed(registers[RAX]) == -ERESTART_RESTARTBLOCK


def recover_call(registers: array[int], code: bytes) -> None:
    """Write the number of a call that was restarted before into orig_rax again.

    After a restart, orig_rax is the number of restart_syscall. The arguments are unchanged, and C libraries load the
    call's number right before the call: ``mov $nr, %eax; syscall``. If other code did, restart_syscall stays, which
    ends the call with EINTR in a task without the restart block.

    Args:
        registers: changed in place.
        code: the 7 bytes before rip.
    """
    if code[:1] == b"\xb8" and code[5:] == SYSCALL:
        number = int.from_bytes(code[1:5], "little")
        if number in _WITH_RESTART_BLOCK:
            registers[ORIG_RAX] = number


class Portable(NamedTuple):
    """A thread's registers in a form that another task can load."""

    registers: array[int]
    below: bytes = b""
    """Data for `below_address`, below the red zone: the time limit of the call, to which the registers point."""
    moved: int = 0
    """Bytes that the call had moved before it was stopped: the registers are for the rest (see transfers.py)."""

    @property
    def below_address(self) -> int:
        """The address for `below`."""
        return (self.registers[RSP] - RED_ZONE - len(self.below)) & ~15


def portable(registers: array[int], waited: Callable[[], int | None], read: Callable[[int, int], bytes]) -> Portable:
    """Convert registers so that they need no state that only the kernel has: restart blocks are lost.

    With -ERESTARTNOHAND and the original number the kernel issues the call again, or ends it with EINTR if a handler
    must run; that is what -ERESTART_RESTARTBLOCK means. The call's time limit becomes the rest of it. If the rest is
    unknown, the limit starts anew, or the call ends with EINTR if that is what the kernel returned. A C library does
    not use the changed argument registers after its call has returned.

    Args:
        registers: as read with ptrace; not changed.
        waited: returns for how many nanoseconds the thread had been in its call, None if unknown.
        read: reads memory of the thread, given an address and a size.
    """
    result = array("Q", registers)
    call = result[ORIG_RAX]
    blocked = signed(result[RAX]) == -ERESTART_RESTARTBLOCK
    ended = ended_early(result)
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
        unit = 1000 if call in _IN_MICROSECONDS else 1
        seconds, units = _TIMESPEC_LAYOUT.unpack(read(result[_TIMESPEC[call]], _TIMESPEC_LAYOUT.size))
        left = max(seconds * 1_000_000_000 + units * unit - time, 0)
        moved = Portable(result, _TIMESPEC_LAYOUT.pack(left // 1_000_000_000, left % 1_000_000_000 // unit))
        result[_TIMESPEC[call]] = moved.below_address
        return moved
    return Portable(result)


def _is_absolute(registers: array[int]) -> bool:
    """Whether the time limit of the call is a point in time, which needs no change."""
    if registers[ORIG_RAX] == NR.clock_nanosleep:
        return bool(registers[RSI] & TIMER_ABSTIME)
    return registers[ORIG_RAX] == NR.futex and registers[RSI] & _FUTEX_COMMAND != _FUTEX_WAIT


def restarted(registers: array[int]) -> array[int]:
    """The registers for a return through a signal frame. The kernel does not restart calls there, so these do.

    rt_sigreturn cancels the restart block (restore_sigcontext), so a call that has one is issued anew.
    """
    result = array("Q", registers)
    if in_system_call(registers):
        result[RAX] = registers[ORIG_RAX]
        result[RIP] = registers[RIP] - 2
    return result

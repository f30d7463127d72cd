"""What is particular to x86-64: system call numbers, registers, the signal frame, restarted system calls.

Another processor is added by a second module with these names.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from torpor._native import lib


class NR(IntEnum):
    """System call numbers (arch/x86/entry/syscalls/syscall_64.tbl)."""

    read = 0
    write = 1
    open = 2
    close = 3
    poll = 7
    lseek = 8
    mmap = 9
    mprotect = 10
    munmap = 11
    brk = 12
    rt_sigaction = 13
    rt_sigprocmask = 14
    rt_sigreturn = 15
    ioctl = 16
    pread64 = 17
    pwrite64 = 18
    readv = 19
    mremap = 25
    mincore = 27
    madvise = 28
    shmget = 29
    shmat = 30
    shmctl = 31
    dup2 = 33
    nanosleep = 35
    getitimer = 36
    setitimer = 38
    getpid = 39
    socket = 41
    connect = 42
    bind = 49
    recvmsg = 47
    getsockname = 51
    getpeername = 52
    setsockopt = 54
    getsockopt = 55
    clone = 56
    fork = 57
    execve = 59
    exit = 60
    wait4 = 61
    semget = 64
    semop = 65
    semctl = 66
    shmdt = 67
    msgget = 68
    msgsnd = 69
    msgrcv = 70
    msgctl = 71
    kill = 62
    fcntl = 72
    flock = 73
    chdir = 80
    fchdir = 81
    chmod = 90
    fchmod = 91
    chown = 92
    fchown = 93
    umask = 95
    ptrace = 101
    setpgid = 109
    setsid = 112
    setgroups = 116
    setresuid = 117
    setresgid = 119
    setfsuid = 122
    setfsgid = 123
    capget = 125
    capset = 126
    rt_sigtimedwait = 128
    rt_sigqueueinfo = 129
    sigaltstack = 131
    personality = 135
    getpriority = 140
    setpriority = 141
    sched_getparam = 143
    sched_setscheduler = 144
    sched_getscheduler = 145
    mlockall = 151
    modify_ldt = 154
    prctl = 157
    arch_prctl = 158
    setrlimit = 160
    chroot = 161
    mount = 165
    gettid = 186
    futex = 202
    sched_setaffinity = 203
    sched_getaffinity = 204
    set_tid_address = 218
    restart_syscall = 219
    semtimedop = 220
    timer_create = 222
    timer_settime = 223
    timer_gettime = 224
    timer_getoverrun = 225
    timer_delete = 226
    clock_gettime = 228
    clock_nanosleep = 230
    exit_group = 231
    epoll_wait = 232
    epoll_ctl = 233
    tgkill = 234
    set_mempolicy = 238
    get_mempolicy = 239
    mq_open = 240
    mq_unlink = 241
    mq_getsetattr = 245
    waitid = 247
    add_key = 248
    keyctl = 250
    ioprio_set = 251
    ioprio_get = 252
    inotify_add_watch = 254
    mkdirat = 258
    mknodat = 259
    unlinkat = 263
    linkat = 265
    ppoll = 271
    unshare = 272
    set_robust_list = 273
    get_robust_list = 274
    tee = 276
    epoll_pwait = 281
    timerfd_create = 283
    timerfd_settime = 286
    timerfd_gettime = 287
    signalfd4 = 289
    eventfd2 = 290
    epoll_create1 = 291
    dup3 = 292
    inotify_init1 = 294
    preadv = 295
    rt_tgsigqueueinfo = 297
    prlimit64 = 302
    open_by_handle_at = 304
    process_vm_readv = 310
    process_vm_writev = 311
    kcmp = 312
    sched_setattr = 314
    sched_getattr = 315
    renameat2 = 316
    seccomp = 317
    memfd_create = 319
    userfaultfd = 323
    membarrier = 324
    mlock2 = 325
    rseq = 334
    pidfd_send_signal = 424
    pidfd_open = 434
    clone3 = 435
    close_range = 436
    openat2 = 437
    faccessat2 = 439
    pidfd_getfd = 438
    epoll_pwait2 = 441


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

# Signal frame (arch/x86/include/uapi/asm/sigcontext.h, ucontext.h).
_FP_XSTATE_MAGIC1 = 0x46505853
_FP_XSTATE_MAGIC2 = 0x46505845
_SW_RESERVED = 464  # offset of struct _fpx_sw_bytes in the xsave area
_XFEATURES = 512  # offset of xstate_bv in the xsave header
_XTILE_DATA = 1 << 18
MIN_XSAVE = 576
"""Bytes of the smallest xsave area: x87, SSE and the header."""
_UC_FLAGS = 0x1 | 0x2 | 0x4  # UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
_UCONTEXT = struct.Struct("<QQ QiiQ 18Q 4H 4Q Q64x Q")
_NO_ALTSTACK = 7
"""Not a mode of sigaltstack: rt_sigreturn ignores it and leaves the thread's alternate stack as it is."""


TOUCH_TILES = b"\xc4\xc2\x78\x49\x06\xc4\xe2\x7b\x49\xc0\xcc"
"""``ldtilecfg (%r14); tilezero %tmm0; int3``: the kernel makes room for AMX tiles when a thread first uses one, and
without that room takes none from a tracer (arch/x86/kernel/fpu/xstate.c, xfd_enable_feature)."""
TILE_CONFIGURATION = struct.pack("<BB14x H30x B15x", 1, 0, 64, 16)
"""For TOUCH_TILES: palette 1, tile 0 with 16 rows of 64 bytes."""


def fitted(xstate: bytes, size: int) -> bytes:
    """An xsave area in the size that this host's kernel takes: components that are not in use may be missing.

    Raises:
        ValueError: a component that is in use does not fit.
    """
    if any(xstate[size:]):
        raise ValueError("the registers are larger than this processor's")
    return xstate[:size].ljust(size, b"\0")


def holds_tiles(xstate: bytes) -> bool:
    """Whether an xsave area holds AMX tiles."""
    return bool(struct.unpack_from("<Q", xstate, _XFEATURES)[0] & _XTILE_DATA)


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


def signal_frame(address: int, registers: array[int], xstate: bytes, sigmask: int) -> bytes:
    """The frame that rt_sigreturn, called with rsp = `address`, makes these registers, xsave area and mask from.

    `address` must be 64-byte aligned. The alternate stack is left alone.
    """
    r = restarted(registers)
    size = len(xstate)
    fpstate = address + _aligned(_UCONTEXT.size)
    context = _UCONTEXT.pack(
        _UC_FLAGS, 0, 0, _NO_ALTSTACK, 0, 0,
        r[R8], r[R9], r[R10], r[R11], r[R12], r[R13], r[R14], r[R15],
        r[RDI], r[RSI], r[RBP], r[RBX], r[RDX], r[RAX], r[RCX], r[RSP], r[RIP], r[EFLAGS],
        r[CS], 0, 0, r[SS],
        0, 0, 0, 0,
        fpstate,
        sigmask,
    )  # fmt: skip
    features, size = _features_in_use(xstate)
    area = bytearray(xstate[:size])
    area[_SW_RESERVED:512] = struct.pack("<IIQI28x", _FP_XSTATE_MAGIC1, size + 4, features, size)
    return context.ljust(_aligned(len(context)), b"\0") + area + struct.pack("<I", _FP_XSTATE_MAGIC2)


def _features_in_use(xstate: bytes) -> tuple[int, int]:
    """The components to restore from an xsave area, and the bytes that they take.

    ptrace gives the area in its largest size, AMX tiles included. The kernel takes only x87 and SSE from a
    signal frame larger than the task may use (fpu/signal.c, check_xstate_in_sigframe), and a task that never asked
    for AMX may not use tiles.
    """
    features: int = struct.unpack_from("<Q", xstate, _SW_RESERVED)[0]  # XCR0, where ptrace puts it
    in_use: int = struct.unpack_from("<Q", xstate, _XFEATURES)[0]
    if not in_use & _XTILE_DATA:
        features &= ~_XTILE_DATA
    return features, min(xsave_size(features), len(xstate))


@cache
def xsave_size(features: int) -> int:
    """Bytes of a standard-format xsave area with these components, on this processor."""
    return int(lib.tp_xsave_size(features))


def signal_frame_size(xstate_size: int) -> int:
    """Bytes of a `signal_frame`, rounded up to 64."""
    return _aligned(_aligned(_UCONTEXT.size) + xstate_size + 4)


def _aligned(size: int) -> int:
    return (size + 63) & ~63

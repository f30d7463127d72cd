"""Block, await and send signals by the kernel's own calls.

libc reserves two signals (32 and 33) and leaves them out of every mask, so that Python's `signal` cannot block them;
but kill(2) sends them like any other. Nor does Python tell the value of a queued signal, which is to be passed on.

Documented in: signal(7), sigwaitinfo(2), rt_sigqueueinfo(2), nptl(7).
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from errno import EAGAIN, EINTR

from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall, try_syscall

EVERY = frozenset(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP}
"""All that can be blocked. A fault of this process itself kills it all the same (force_sig_info(), kernel/signal.c)."""
_SI_USER, _SI_QUEUE, _SI_TKILL, _POLL_IN = 0, -1, -6, 1  # si_code (asm-generic/siginfo.h)
_INFO_SIZE = 128  # of siginfo_t
_MASK_SIZE = 8  # of the kernel's sigset_t


@dataclass(frozen=True)
class Received:
    """A signal that was awaited."""

    info: bytes
    """The siginfo_t."""

    @property
    def number(self) -> int:
        """The number of the signal."""
        return int.from_bytes(self.info[:4], "little")

    @property
    def by_process(self) -> bool:
        """Whether a process has sent it, and not the kernel."""
        return self._code in (_SI_USER, _SI_QUEUE, _SI_TKILL)

    @property
    def from_descriptor(self) -> bool:
        """Whether the kernel has sent it because a descriptor can be read (F_SETSIG).

        SIGCHLD and the like have codes of their own instead (sig_specific_sicodes(), include/linux/signal.h).
        """
        return self._code == _POLL_IN

    @property
    def sender(self) -> int:
        """The PID of the process that has sent it."""
        return int.from_bytes(self.info[16:20], "little")

    def pass_on(self, pid: int) -> None:
        """Send the same signal to a process, with its value if it has one.

        Raises:
            ProcessLookupError: there is no such process.
        """
        if self._code == _SI_QUEUE and _queue(pid, self.info):
            return
        os.kill(pid, self.number)

    @property
    def _code(self) -> int:
        return int.from_bytes(self.info[8:12], "little", signed=True)


def block(signals: Iterable[int]) -> None:
    """Block these signals as well, in the calling thread."""
    syscall(NR.rt_sigprocmask, signal.SIG_BLOCK, _mask(signals), 0, _MASK_SIZE)


def unblock(signals: Iterable[int]) -> None:
    """Do not block these signals any more, in the calling thread."""
    syscall(NR.rt_sigprocmask, signal.SIG_UNBLOCK, _mask(signals), 0, _MASK_SIZE)


def wait(signals: Iterable[int], seconds: float | None = None) -> Received | None:
    """Wait for one of these blocked signals. Return None if time is up, or this process was stopped and continued."""
    limit = 0 if seconds is None else struct.pack("<qq", int(seconds), int(seconds % 1 * 1e9))
    info = bytearray(_INFO_SIZE)
    result = try_syscall(NR.rt_sigtimedwait, _mask(signals), info, limit, _MASK_SIZE)
    if result in (-EINTR, -EAGAIN):
        return None
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return Received(bytes(info))


def queue(pid: int, number: int, value: int) -> bool:
    """Queue a signal with a value; return whether there is room for it (RLIMIT_SIGPENDING), and such a process."""
    words = (number, 0, _SI_QUEUE, 0, os.getpid(), os.getuid(), value)
    return _queue(pid, b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words))


def set_default(number: int) -> None:
    """Give a signal its default action."""
    syscall(NR.rt_sigaction, number, bytes(32), 0, _MASK_SIZE)  # struct sigaction: SIG_DFL, no flags, no mask


def _queue(pid: int, info: bytes) -> bool:
    number = int.from_bytes(info[:4], "little")
    return try_syscall(NR.rt_sigqueueinfo, pid, number, bytearray(info.ljust(_INFO_SIZE, b"\0"))) == 0


def _mask(signals: Iterable[int]) -> bytes:
    return sum(1 << (number - 1) for number in set(signals)).to_bytes(_MASK_SIZE, "little")

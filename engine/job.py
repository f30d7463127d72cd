"""A job that was woken or started: one PID that lives as long as it, signals, its end."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torpor import procfs
from torpor.capsule import Init

_SI_KERNEL = 0x80  # asm-generic/siginfo.h
_FORWARDED = frozenset(signal.valid_signals()) - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
    signal.SIGABRT, signal.SIGSYS, signal.SIGPIPE,
}  # fmt: skip
"""Signals that a foreground restore hands on; not those that tell of a fault in itself."""


@dataclass
class Job:
    """A process tree that lives on its own. Closing or forgetting this object does nothing to it."""

    init: Init
    root_pid: int
    """The PID of the tree's root, in the tree's PID namespace."""
    tree_pid: int
    """The PID of the tree's root as this process sees it: what `torpor.checkpoint` wants. 0 when it ended at once."""
    warnings: tuple[str, ...] = ()
    """What is not as it was, in words."""
    _code: int | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """A PID that lives as long as the job: a signal sent to it reaches the tree's root."""
        return self.init.pid

    def send_signal(self, number: int) -> None:
        """Send a signal to the tree's root; SIGKILL ends the whole job.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self._code is not None:
            raise ProcessLookupError(f"job {self.pid} has ended")
        if number == signal.SIGKILL:
            # Outside a capsule the end of init is not that of the others.
            for pid in _descendants(self.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code if it has ended: as `wait`."""
        return self._end(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end.

        Returns:
            What the root ended with: its exit code, or minus the number of the signal that killed it.
        """
        code = None
        while code is None:
            code = self._end(0)
        return code

    @staticmethod
    def hold_signals() -> None:
        """Let the signals that `foreground` hands on wait for it, from now on, in the calling thread.

        Before the job is let go, for a signal that comes between must not end this process and leave the job alone.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)

    def foreground(self, hear: Callable[[int], bool] = lambda _: False) -> int:
        """Stand for the job until it ends: hand on every signal that this process is sent, and leave them blocked.

        To be called by the main thread of a program that does nothing else. Returns as `wait`.

        Args:
            hear: told of every signal; whether it is not for the job.
        """
        self.hold_signals()
        while (code := self.poll()) is None:
            told = signal.sigwaitinfo(_FORWARDED)
            if told.si_signo != signal.SIGCHLD and not hear(told.si_signo) and not self._has_it(told):
                with suppress(ProcessLookupError):
                    os.kill(self.pid, told.si_signo)
        return code

    def _has_it(self, told: signal.struct_siginfo) -> bool:
        """Whether init was sent it as well: what a terminal sends, Ctrl-C say, it sends to a whole group."""
        with suppress(ProcessLookupError):
            return told.si_code == _SI_KERNEL and os.getpgid(self.pid) == os.getpgrp()
        return True

    def _end(self, options: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # somebody else has waited for it; what it told is still to be read
                pid, status = self.pid, 0
            if pid == 0:
                return None
            told = os.read(self.init.status_fd, 4)
            os.close(self.init.status_fd)
            if len(told) == 4:
                (status,) = struct.unpack("<i", told)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in procfs.children(pid, procfs.threads(pid)):
            found += [child, *_descendants(child)]
    return found

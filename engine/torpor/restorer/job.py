"""A job that was woken or started: its PID, its signals, its exit status."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torpor import processes, procfs
from torpor.arch.x86_64 import NR
from torpor.remote.sys import syscall
from torpor.restorer.capsule import Init
from torpor.util import inherited
from torpor.util.inherited import Signals

_SI_KERNEL = 0x80  # asm-generic/siginfo.h
_SI_QUEUE = -1
_HOLD, _LIVES_ON = 0x746F00, 0x10000  # as in native/init.c
_FORWARDED = frozenset(signal.valid_signals()) - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
    signal.SIGABRT, signal.SIGSYS, signal.SIGPIPE,
}  # fmt: skip
"""Signals that a foreground process forwards to its job; not those that report a fault of this process itself."""
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_STOP_SECONDS, _STOP_STEP = 10.0, 0.01
"""Seconds that a job may take to stop after one of these signals, and seconds between two checks."""
_living_on: set[int] = set()
"""The PIDs of inits that outlived their jobs, and have not been waited for yet."""


@dataclass
class Job:
    """A process tree that lives on its own. Closing or forgetting this object does nothing to it."""

    init: Init
    root_pid: int
    """The PID of the tree's root, in the tree's PID namespace."""
    tree_pid: int
    """The PID of the root in this process's PID namespace, for `torpor.checkpoint`; 0 if it ended at once."""
    warnings: tuple[str, ...] = ()
    """Messages for the user: what is different from before the checkpoint."""
    _reported: int | None = field(default=None, init=False)
    """What init has reported: a wait status, perhaps with _LIVES_ON; -1 if init was killed before it could report."""
    _killed: bool = field(default=False, init=False)
    """Whether init was sent SIGKILL: then it does not outlive the root of the tree."""
    _code: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Have SIGCHLD report the end of the job, as for a child: in a capsule, init itself may live on after that."""
        fcntl.fcntl(self.init.status_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.init.status_fd, fcntl.F_SETSIG, signal.SIGCHLD)
        fcntl.fcntl(self.init.status_fd, fcntl.F_SETFL, fcntl.FASYNC)

    @property
    def pid(self) -> int:
        """A PID that lives as long as the job: a signal sent to it reaches the tree's root.

        In a capsule it lives on while the root's background processes do. Then signals sent to it reach those.
        """
        return self.init.pid

    def send_signal(self, number: int) -> None:
        """Send a signal to the tree's root; SIGKILL ends the whole job.

        Raises:
            ProcessLookupError: the job has ended.
        """
        if self.poll() is not None:
            raise ProcessLookupError(f"job {self.pid} has ended")
        if number == signal.SIGKILL:
            # Outside a capsule the others do not die with init.
            for pid in list(processes.tree(self.pid))[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._killed = True
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return what `wait` returns if the job has ended, else None."""
        return self._end(0)

    def wait(self) -> int:
        """Wait for the end of the job.

        Returns:
            The root's exit code, or minus the number of the signal that killed it.
        """
        code = None
        while code is None:
            code = self._end(None)
        return code

    @staticmethod
    def hold_signals() -> Signals:
        """Block the signals that `foreground` passes on, in the calling thread, so that they wait for it.

        Call it before the job runs: a signal in between must not end this process and leave the job alone. Signals that
        this process was started to ignore, as under nohup(1), stay ignored and do not reach the job either.

        Returns:
            The signals that a program started before this call would ignore and block.
        """
        before = inherited.signals()
        if signal.SIGCHLD in before.ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, the job's end would not be reported
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED - (before.ignored - {signal.SIGCHLD}))
        return before

    def foreground(self, on_signal: Callable[[int], bool] | None = None) -> int:
        """Stand in for the job until it ends: forward every signal that this process gets. The signals stay blocked.

        If Ctrl-Z stops the job, this process stops as well, for the shell that waits for it. Call this from the main
        thread of a program that does nothing else. Returns what `wait` returns.

        Args:
            on_signal: called with every signal, by which the code that relays the job's terminal learns of them. If it
                returns True, the signal is not forwarded.
        """
        awaited = _FORWARDED - (self.hold_signals().ignored - {signal.SIGCHLD})
        self._keep_signals_pending()
        stop_until = 0.0
        while (code := self.poll()) is None:
            received = signal.sigtimedwait(awaited, _STOP_STEP) if stop_until else signal.sigwaitinfo(awaited)
            if received is None:
                if self._is_stopped():  # and no SIGCONT has come since
                    self._keep_signals_pending()  # start anew: a stop signal that init gets later is another one
                    os.kill(os.getpid(), signal.SIGSTOP)
                    stop_until = 0.0
                elif time.monotonic() > stop_until:
                    stop_until = 0.0
                continue
            if received.si_signo == signal.SIGCHLD or (on_signal is not None and on_signal(received.si_signo)):
                continue
            self._forward(received)
            if received.si_signo in _STOPS and on_signal is None:
                stop_until = time.monotonic() + _STOP_SECONDS
        return code

    def _keep_signals_pending(self, forget: int = 0) -> None:
        """Let init keep its signals pending, and forget the pending one of this number, or all (native/init.c).

        If the job is in this process's group, a signal to the whole group has reached it already. The signal itself
        does not show that; but init is in the same group, and has then got it too.
        """
        received = bytearray(128)  # siginfo_t
        struct.pack_into(
            "<iiiiiii", received, 0, signal.SIGURG, 0, _SI_QUEUE, 0, os.getpid(), os.getuid(), _HOLD + forget
        )
        with suppress(ProcessLookupError):
            syscall(NR.rt_sigqueueinfo, self.pid, signal.SIGURG, received)

    def _forward(self, received: signal.struct_siginfo) -> None:
        """Pass a signal on to the job, unless the job has got it already."""
        with suppress(FileNotFoundError, ProcessLookupError):  # the job has ended
            if os.getpgid(self.tree_pid) == os.getpgrp():
                if received.si_code == _SI_KERNEL:  # from the terminal, which signals the whole group
                    return
                status = procfs.status(procfs.read(f"/proc/{self.pid}/status"))
                waiting = int(status[b"ShdPnd"], 16) << 1
                if waiting & _cancelled_by(received.si_signo):
                    return
                if waiting >> received.si_signo & 1:
                    self._keep_signals_pending(received.si_signo)
                    return
            os.kill(self.tree_pid, received.si_signo)

    def _is_stopped(self) -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            return procfs.stat(self.tree_pid).state == "T"
        return False

    def _end(self, timeout: int | None) -> int | None:
        _reap_ended()
        if self._reported is None:
            self._reported = self._read_report(timeout)
        if self._code is None and self._reported is not None:
            status = self._reported
            if status > 0 and status & _LIVES_ON and not self._killed:
                _living_on.add(self.pid)
            else:
                try:
                    pid, own = os.waitpid(self.pid, 0 if timeout is None else os.WNOHANG)
                except ChildProcessError:  # something else has reaped it
                    pid, own = self.pid, signal.SIGKILL
                if pid == 0:
                    return None
                status = own if status < 0 else status
            self._code = os.waitstatus_to_exitcode(status & 0xFFFF)
        return self._code

    def _read_report(self, timeout: int | None) -> int | None:
        """What init has reported by now; None if nothing."""
        poller = select.poll()  # select() cannot take descriptors from 1024 on
        poller.register(self.init.status_fd, select.POLLIN)
        if not poller.poll(timeout):
            return None
        received = os.read(self.init.status_fd, 4)
        os.close(self.init.status_fd)
        return int.from_bytes(received, "little") if received else -1


def _reap_ended() -> None:
    """Reap the inits that lived on and have ended since, as subprocess does with children that nobody asks for."""
    for pid in list(_living_on):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # something else has reaped it
            ended = pid
        if ended:
            _living_on.discard(pid)


def _cancelled_by(number: int) -> int:
    """Return the mask of signals that discard a pending one of this number (prepare_signal(), kernel/signal.c)."""
    if number == signal.SIGCONT:
        return sum(1 << stop for stop in _STOPS)
    return 1 << signal.SIGCONT if number in _STOPS else 0

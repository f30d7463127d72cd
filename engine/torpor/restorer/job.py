"""A job that was woken or started: its PID, its signals, its exit status."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torpor import processes, procfs
from torpor._native import lib
from torpor.remote import kernel_signals
from torpor.remote.kernel_signals import Received
from torpor.restorer.capsule import Init
from torpor.util import inherited
from torpor.util.inherited import Signals

_HOLD, _HEARD, _LIVES_ON, _ASK = 0x746F00, 0x80, 0x10000, 64  # as in native/init.c
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_STOP_STEP = 0.01
"""Seconds between two checks whether a job that was stopped is frozen no more."""
_FAILED_WRITES = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that this process gets itself when it writes, and that Python ignores."""
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
    ignored: frozenset[int] = frozenset()
    """Signals that `foreground` passes on only to a job that handles them: those that the process which has woken it
    ignores, as under nohup(1)."""
    _reported: int | None = field(default=None, init=False)
    """The wait status of the root, perhaps with _LIVES_ON; -1 if init was killed before it could report."""
    _stopped_by: int = field(default=0, init=False)
    """The signal that has stopped the root, until `foreground` has done the same; else 0."""
    _changed: bool = field(default=False, init=False)
    """Whether init has reported anything of the root since this process was stopped last."""
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

        Call it before the job runs: a signal in between must not end this process and leave the job alone. Those that
        this process was started to ignore, as under nohup(1), are passed on as well: the job may handle them. (The
        kernel keeps a blocked signal pending even if it is ignored: sig_ignored(), kernel/signal.c.)

        Returns:
            The signals that a program started before this call would ignore and block.
        """
        before = inherited.signals()
        kernel_signals.set_default(signal.SIGCHLD)  # if it were ignored, the job's end would not be reported
        kernel_signals.block(kernel_signals.EVERY)
        return before

    def foreground(
        self, on_signal: Callable[[int], bool] | None = None, on_stop: Callable[[int], object] | None = None
    ) -> int:
        """Stand in for the job until it ends: forward every signal that this process gets. The signals stay blocked.

        While the job is stopped, by whatever, this process is stopped as well, for the shell that waits for it. Call
        this from the main thread of a program that does nothing else. Returns what `wait` returns.

        Args:
            on_signal: called with every signal, by which the code that relays the job's terminal learns of them. If it
                returns True, the signal is not forwarded.
            on_stop: called instead of `stop_too`, which it may call, with the signal that has stopped the job.
        """
        self.hold_signals()
        self._was_sent_to_group(0)  # from now on init keeps its signals pending, and tells of stops
        self._stopped_by = signal.SIGSTOP if self._state() == "T" else 0
        while (code := self.poll()) is None:
            # If a save of this process has frozen it, this process goes on: nobody else would let the job go. A stop
            # discards a SIGCONT that is pending: that is passed on first.
            if self._stopped_by and self._state() != "t" and signal.SIGCONT not in signal.sigpending():
                number, self._stopped_by = self._stopped_by, 0
                if on_stop:
                    on_stop(number)
                elif received := self.stop_too(number):
                    self._forward(received, after_stop=True)
                continue
            received = kernel_signals.wait(kernel_signals.EVERY, _STOP_STEP if self._stopped_by else None)
            if received is None:
                continue
            self._continue_init()
            if received.number == signal.SIGCONT and received.from_descriptor:
                self._was_sent_to_group(received.number)  # it may have hidden one that was
            elif not _is_for_this_process(received) and (on_signal is None or not on_signal(received.number)):
                self._forward(received)
        return code

    def stop_too(self, number: int) -> Received | None:
        """Stop this process as the job was, until someone continues it, or after SIGSTOP the job is continued or ends.

        Returns:
            The signal that has continued it.
        """
        self._changed = False
        for other in _STOPS:
            self._was_sent_to_group(other)  # one that is sent later is another one
        # Not after a signal of the terminal, whose shell continues all: the next Ctrl-Z may come before the report of
        # what was before it, which would continue this process for a moment.
        wake = signal.SIGCHLD if number in _STOPS else signal.SIGCONT
        fcntl.fcntl(self.init.status_fd, fcntl.F_SETSIG, wake)
        try:
            self._stop_by(number)
        finally:
            fcntl.fcntl(self.init.status_fd, fcntl.F_SETSIG, signal.SIGCHLD)
        self._continue_init()
        return kernel_signals.wait([signal.SIGCONT], 0)

    def _stop_by(self, number: int) -> None:
        """Stop this process by this signal if that is possible, else by SIGSTOP; not if init has more to report."""
        if number not in _STOPS or number in inherited.ignored() or not _is_below_shell():
            lib.tp_stop(signal.SIGSTOP, self.init.status_fd)
        elif lib.tp_stop(number, self.init.status_fd):
            # Now it is pending, and every SIGCONT that comes discards it; one that came before has continued the job.
            if self._state() == "T":
                kernel_signals.unblock([number])
                kernel_signals.block([number])
            else:
                kernel_signals.wait([number], 0)

    def _state(self) -> str:
        with suppress(FileNotFoundError, ProcessLookupError):
            return procfs.stat(self.tree_pid).state
        return ""

    def _continue_init(self) -> None:
        """If the whole group was sent SIGSTOP, and only this process was continued, continue init and the stand-ins.

        They must answer, and report what becomes of the root.
        """
        with suppress(FileNotFoundError, ProcessLookupError):
            above = self.tree_pid
            while above not in (0, self.pid):
                above = procfs.stat(above).ppid
                if above and procfs.stat(above).state == "T":
                    os.kill(above, signal.SIGCONT)
                    if above == self.pid:
                        self._was_sent_to_group(signal.SIGCONT)

    def _was_sent_to_group(self, number: int) -> bool:
        """Whether a signal that this process has got was sent to its whole process group.

        The signal itself does not show that; but init, if it is in the same group, has then got it too (native/init.c).
        """
        if number and os.getpgid(self.pid) != os.getpgrp():
            return False
        if not kernel_signals.queue(self.pid, _ASK, _HOLD + number):
            return False
        while (report := self._next_report(None)) is not None and report & ~0xFF != _HOLD:
            self._note(report)
        return report is not None and bool(report & _HEARD)

    def _forward(self, received: Received, *, after_stop: bool = False) -> None:
        """Pass a signal on to the job, or to its process group, unless the job has got it already.

        The SIGCONT that continues this process after a stop is not needed if the job was continued meanwhile. (If the
        job has read from its terminal since, SIGTTIN has taken the SIGCONT from init, which cannot tell of it.)
        """
        number = received.number
        with suppress(FileNotFoundError, ProcessLookupError):  # the job has ended
            to_group = self._was_sent_to_group(number)
            if after_stop and (self._changed or received.from_descriptor):
                return
            group = os.getpgid(self.tree_pid)
            if group == os.getpgrp():
                if to_group:
                    return
                cancelled = _cancelled_by(number)
                if cancelled & signal.sigpending():  # one that came later, and has cancelled it in the job, too
                    return
                for other in cancelled:  # one that came earlier: this signal has cancelled it here
                    self._was_sent_to_group(other)
            elif number in self.ignored and processes.dies_of(self.tree_pid, number):
                return
            elif number in _STOPS and self._is_orphaned(group) and processes.dies_of(self.tree_pid, number):
                number = signal.SIGSTOP  # the kernel would drop the other one
            if number == signal.SIGCONT:
                self._stopped_by = 0  # init reports what comes later
            if to_group:
                os.killpg(group, number)
            elif number != received.number:
                os.kill(self.tree_pid, number)
            else:
                received.pass_on(self.tree_pid)

    def _is_orphaned(self, group: int) -> bool:
        """Whether nobody above the root can continue its process group (setpgid(2)), as that of a daemon."""
        above = procfs.stat(self.tree_pid).ppid
        return not above or os.getpgid(above) == group or os.getsid(above) != os.getsid(self.tree_pid)

    def _end(self, timeout: int | None) -> int | None:
        _reap_ended()
        while self._reported is None and (report := self._next_report(timeout)) is not None:
            self._note(report)
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

    def _next_report(self, timeout: int | None) -> int | None:
        """What init reports next: -1 if it was killed. None if it has not reported, or reports no more."""
        if self._reported is not None or not self._has_report(timeout):
            return None
        received = os.read(self.init.status_fd, 4)
        return int.from_bytes(received, "little") if received else -1

    def _has_report(self, timeout: int | None) -> bool:
        poller = select.poll()  # select() cannot take descriptors from 1024 on
        poller.register(self.init.status_fd, select.POLLIN)
        return bool(poller.poll(timeout))

    def _note(self, report: int) -> None:
        """Take note that the root has ended, or was stopped or continued. Answers that nobody waits for are dropped."""
        self._changed = self._changed or report & ~0xFF != _HOLD
        if report > 0 and os.WIFSTOPPED(report):
            self._stopped_by = os.WSTOPSIG(report)
        elif report > 0 and os.WIFCONTINUED(report):
            self._stopped_by = 0
        elif report & ~0xFF != _HOLD:
            self._reported = report
            os.close(self.init.status_fd)


def _reap_ended() -> None:
    """Reap the inits that lived on and have ended since, as subprocess does with children that nobody asks for."""
    for pid in list(_living_on):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # something else has reaped it
            ended = pid
        if ended:
            _living_on.discard(pid)


def _is_for_this_process(received: Received) -> bool:
    """Whether a signal tells this process that a child has ended, init has reported, or an own write has failed."""
    if received.number in _FAILED_WRITES:
        return received.sender == os.getpid()
    return received.number == signal.SIGCHLD and not received.by_process


def _is_below_shell() -> bool:
    """Whether a process of another group in this session is above: else the kernel ignores _STOPS (setpgid(2))."""
    with suppress(FileNotFoundError, ProcessLookupError):
        above = os.getppid()
        while above and os.getpgid(above) == os.getpgrp():
            above = procfs.stat(above).ppid
        return above > 0 and os.getsid(above) == os.getsid(0)
    return False


def _cancelled_by(number: int) -> frozenset[int]:
    """Return the signals that discard a pending one of this number, and that it discards (prepare_signal())."""
    if number == signal.SIGCONT:
        return frozenset(_STOPS)
    return frozenset({signal.SIGCONT}) if number in _STOPS else frozenset()

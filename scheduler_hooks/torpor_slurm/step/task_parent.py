"""The parent of a step's tasks: it forwards signals, merges their output line by line, and exits as srun would.

It is frozen and restored together with the tasks. So it waits on pipes and on an interval timer, whose remaining time
is in the snapshot. It computes no deadline from a clock: the next node's clock differs.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from torpor_slurm.step.job_processes import environments, task_variable
from torpor_slurm.step.options import Step
from torpor_slurm.step.tasks import say

_FORWARDED = frozenset(signal.valid_signals()) - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGALRM, signal.SIGCHLD),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
}
_CHUNK = 1 << 16
_UNTIL_KILL = 30.0
"""Seconds from SIGTERM to SIGKILL when a step is ended: KillWait's default."""


@dataclass
class Stream:
    """A task's stdout or stderr: a pipe that is copied line by line to a file which several tasks share."""

    source: int
    destination: int
    label: bytes
    begun: bytes = b""
    """The beginning of a line whose end has not been read yet."""

    def copy(self) -> bool:
        """Read what the pipe holds, and write its complete lines. At the end of input, write the rest; return False."""
        data = os.read(self.source, _CHUNK)
        lines = (self.begun + data).split(b"\n")
        self.begun = lines.pop()
        whole = [line + b"\n" for line in lines]
        if self.begun and (not data or len(self.begun) > _CHUNK):
            whole.append(self.begun + (b"\n" if self.label else b""))
            self.begun = b""
        _write(self.destination, b"".join(self.label + line for line in whole))
        return bool(data)


class Input:
    """srun's own stdin, which is copied to every task."""

    def __init__(self, destinations: Sequence[int]) -> None:
        for fd in destinations:
            os.set_blocking(fd, False)
        self.left = dict.fromkeys(destinations, b"")
        """The data that has not been written to each task yet."""
        self.over = not destinations

    def register(self, poll: select.poll) -> None:
        """Wait for room in the pipes that have data left to write; if none has, for more input."""
        waiting = [fd for fd, data in self.left.items() if data]
        for fd in waiting:
            poll.register(fd, select.POLLOUT)
        if not waiting and not self.over and self.left:
            poll.register(0, select.POLLIN)

    def copy(self, ready: int) -> None:
        """Read more, or write what is left."""
        if ready == 0:
            try:
                data = os.read(0, _CHUNK)
            except OSError:
                data = b""
            self.over = not data
            self.left = dict.fromkeys(self.left, data)
        elif ready in self.left:
            try:
                self.left[ready] = self.left[ready][os.write(ready, self.left[ready]) :]
            except BlockingIOError:
                return
            except OSError:  # the task reads no more
                os.close(ready)
                del self.left[ready]
        if self.over:
            for fd in [fd for fd, data in self.left.items() if not data]:
                os.close(fd)
                del self.left[fd]


class TaskParent:
    """The parent of a step's tasks."""

    def __init__(self, step: Step, name: str) -> None:
        """Begin to catch signals. Those that arrive before the tasks run are forwarded once they do.

        Args:
            step: the step.
            name: its name in messages: ``JOB.STEP``.
        """
        self.step = step
        self.name = name
        self.living: dict[int, range] = {}
        """The numbers of the running tasks, by PID: one for each process, or all of them for an MPI launcher."""
        self.pids: list[int] = []
        """The PIDs of all tasks, running or not."""
        self.streams: dict[int, Stream] = {}
        self.code = 0
        self.signalled = False
        self.ending = False
        self._wakeup, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*_FORWARDED, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, lambda *_: None)

    def run(
        self,
        living: dict[int, range],
        streams: Sequence[Stream],
        inputs: Sequence[int],
        held: Sequence[int] = (),
    ) -> int:
        """Wait until all tasks have ended and all output is copied. Return the exit code of the step.

        Args:
            living: the numbers of the tasks, by PID.
            streams: their output.
            inputs: pipes to the tasks, to which srun's own stdin is copied.
            held: descriptors to close when no task runs any more.
        """
        self.living, self.pids = living, list(living)
        self.streams = {stream.source: stream for stream in streams}
        given = Input(inputs)
        while self.living or self.streams:
            if held and not self.living:
                for fd in held:
                    os.close(fd)
                held = ()
            poll = select.poll()
            poll.register(self._wakeup, select.POLLIN)
            for fd in self.streams:
                poll.register(fd, select.POLLIN)
            given.register(poll)
            for fd, _ in poll.poll():
                if fd == self._wakeup:
                    self._handle(os.read(fd, _CHUNK))
                elif fd in self.streams:
                    if not self.streams[fd].copy():
                        os.close(fd)
                        del self.streams[fd]
                else:
                    given.copy(fd)
        if self.signalled:
            say(f"Force Terminated StepId={self.name}")
        return self.code

    def _handle(self, numbers: bytes) -> None:
        for number in dict.fromkeys(numbers):
            if number in _FORWARDED:
                self._signal(number)
        if signal.SIGALRM in numbers:
            if self.ending:
                self._signal(signal.SIGKILL)
            else:
                say(f"First task exited {self.step.values['wait']}s ago")
                self._terminate(signal.SIGKILL)
        self._reap()

    def _signal(self, number: int) -> None:
        for pid in self.living:  # none is reaped meanwhile
            with suppress(OSError):
                os.kill(pid, number)

    def _terminate(self, *numbers: int) -> None:
        """Send the signals to the tasks. When all tasks have ended, what they started is killed too, as by Slurm."""
        self.ending = True
        say(f"launch/slurm: _step_signal: Terminating StepId={self.name}")
        for number in numbers:
            self._signal(number)

    def _kill_leftovers(self) -> None:
        started = {task_variable(pid) for pid in self.pids}
        for pid, words in environments(os.environ):
            if pid != os.getpid() and not started.isdisjoint(words):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        ends: dict[str, list[int]] = {}
        bad = False
        for pid in list(self.living):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if not gone:
                continue
            code = os.waitstatus_to_exitcode(status)
            ended = self.living.pop(pid)
            self.signalled |= code < 0
            self.code = max(self.code, 128 - code if code < 0 else code)
            bad = bad or code != 0
            if code:
                core = " (core dumped)" if os.WCOREDUMP(status) else ""
                how = f"{signal.strsignal(-code)}{core}" if code < 0 else f"Exited with exit code {code}"
                ends.setdefault(how, []).extend(ended)
            if not self.ending and len(self.living) == len(self.pids) - 1:
                signal.setitimer(signal.ITIMER_REAL, int(self.step.values.get("wait") or 0))
        node = os.uname().nodename.partition(".")[0]
        for how, tasks in ends.items():
            say(f"error: {node}: task{'s' if len(tasks) > 1 else ''} {_ranges(sorted(tasks))}: {how}")
        if bad and self.step.kills_on_bad_exit and self.living and not self.ending:
            self._terminate(signal.SIGCONT, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, _UNTIL_KILL)
        if self.ending and not self.living:
            self._kill_leftovers()


def _ranges(numbers: Sequence[int]) -> str:
    """``0-1,3`` for [0, 1, 3]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:  # nobody reads it, or the disk is full: the tasks run on, as with srun
            return

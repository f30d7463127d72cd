"""The sentinel: a step that only sleeps. When a grace time begins, Slurm's SIGTERM ends it.

When Slurm preempts a job, it sends SIGTERM to the steps at once, but to the batch process only at the end of the grace
time. So the end of a step beside the application shows that a preemption begins, however the site is configured.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from types import TracebackType

from torpor_slurm.allocation import Allocation

RESTART_SECONDS, RETRY_SECONDS = 1.0, 60.0
"""Seconds until a sentinel that has ended is started again, and the most after it failed to start: each failure in a
row doubles the wait.

When the next one runs, the controller is asked for the cause again: a preemption may have begun meanwhile."""
STOP_SECONDS = 0.5
"""Seconds that srun has to end its step."""
_NEEDED = ("PATH", "HOME", "LANG", "SLURM_CONF")
"""The environment variables that srun needs. It would read the SLURM_* variables of the job as options."""


class Sentinel:
    """The sentinel step of a job. A context manager: leaving it ends the step."""

    def __init__(self, allocation: Allocation, trouble: Callable[[str], object]) -> None:
        """Prepare it.

        Args:
            allocation: the job's.
            trouble: called with the reason why srun cannot be started, once for each reason. Another attempt follows.
        """
        self._allocation = allocation
        self._trouble = trouble
        self._printed = ""
        self._srun: subprocess.Popen[bytes] | None = None
        self.signal: int | None = None
        """The signal that ended the last step, if one did."""
        self._started = False
        self._failures = 0
        """How often it has failed to start, in a row."""
        self._start_at = 0.0
        """When it was last started, or is to be started again (time.monotonic())."""

    def __enter__(self) -> Sentinel:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._srun is not None:
            assert self._srun.stdout
            self._srun.stdout.close()
            self._srun.terminate()  # srun ends its step; if it does not, the step ends with the job, a moment later
            try:
                self._srun.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._srun.kill()
                self._srun.wait()

    def has_started(self) -> bool:
        """Whether the step has started since the last call. A warning that came before that may have been missed."""
        if self._started:
            return False
        if self._allocation.in_step:
            self._started = True  # this process is part of a step, and gets the warning itself
            return True
        if self._srun is None:
            return False
        self._started = self._has_printed(self._srun)
        return self._started

    @property
    def starting(self) -> bool:
        """Whether the step is about to start. One that has to wait for resources may take arbitrarily long."""
        waited = time.monotonic() - self._start_at
        return self._srun is not None and not self._started and waited < RETRY_SECONDS

    def ended(self) -> bool:
        """Whether the step has ended since the last call: by a signal of Slurm, or by a fault."""
        if self._srun is None:
            if not self._allocation.in_step and time.monotonic() >= self._start_at:
                self._start()
            return False
        if (code := self._srun.poll()) is None:
            return False
        self.signal = code - 128 if code > 128 else None  # srun(1)
        assert self._srun.stdout
        self._start_at = time.monotonic() + self._pause(started=self._started or self._has_printed(self._srun))
        self._srun.stdout.close()
        self._srun = None
        return True

    def _pause(self, *, started: bool) -> float:
        """Seconds until the next attempt, after one that started or failed."""
        self._failures = 0 if started else self._failures + 1
        return min(RESTART_SECONDS * (1 << self._failures), RETRY_SECONDS)

    @staticmethod
    def _has_printed(srun: subprocess.Popen[bytes]) -> bool:
        assert srun.stdout
        return bool(select.select([srun.stdout], [], [], 0)[0] and os.read(srun.stdout.fileno(), 1))

    def _start(self) -> None:
        if self._allocation.in_step:
            return  # this process is part of a step, and gets the warning itself
        command = ["srun", f"--jobid={self._allocation.job}", f"--nodelist={self._allocation.node}"]
        command += ["--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=0", "--mpi=none", "--quiet"]
        command += ["--job-name=torpor-sentinel", "--chdir=/", "--input=none", "--error=none"]
        self._started = False
        self._start_at = time.monotonic()
        try:
            self._srun = subprocess.Popen(
                [*command, "sh", "-c", "echo; exec sleep infinity"],
                env={name: os.environ[name] for name in _NEEDED if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The supervisor blocks signals, and has one thread.
                preexec_fn=_unblock if signal.pthread_sigmask(signal.SIG_BLOCK, ()) else None,  # noqa: PLW1509
            )
        except OSError as error:  # no srun, srun cannot be executed, or fork failed: this may pass
            self._start_at += self._pause(started=False)
            if (words := f"srun cannot be started: {error}") != self._printed:
                self._printed = words
                self._trouble(words)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

"""The process of a kernel, held by a pidfd: a child of this server, woken by it, or left by an earlier server."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress

from torpor import Job
from torpor.processes import children, pidfd_open, pidfd_send_signal
from torpor_jupyter.data.records import ProcessId


class KernelProcess:
    """A living kernel.

    A pidfd, never waitpid(2), shows whether it lives: while the engine traces a child of this server, a waitpid here
    would consume the ptrace stops that the engine waits for.
    """

    def __init__(self, pid: int, *, child: subprocess.Popen[bytes] | None = None, job: Job | None = None) -> None:
        """Hold a process; raises ProcessLookupError when it has ended and been reaped.

        Args:
            pid: the kernel's PID in the PID namespace of this process.
            child: the child process, if this process started the kernel or its torpor-init.
            job: the job, if this process woke the kernel.
        """
        self.pid = pid
        self.id = ProcessId.of(pid)
        self._child = child
        self._job = job
        self._pidfd = pidfd_open(pid)
        self._code: int | None = None

    @classmethod
    def below(cls, init: subprocess.Popen[bytes]) -> KernelProcess:
        """Hold the child of a torpor-init that this process has just started; if init has ended, hold init itself."""
        while not os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            with suppress(FileNotFoundError, ProcessLookupError):
                if (below := children(init.pid)) and _runs_another(below[0], init.pid):
                    return cls(below[0], child=init)
            os.sched_yield()
        return cls(init.pid, child=init)

    @classmethod
    def adopt(cls, process: ProcessId) -> KernelProcess:
        """Adopt the kernel process that an earlier server has left. Raises ProcessLookupError if it is gone."""
        if not process.exists():
            raise ProcessLookupError(f"process {process.pid} is not that kernel any more")
        return cls(process.pid)

    def poll(self) -> int | None:
        """Its exit code if it has ended (0 if another process is its parent and got the code), None while it lives."""
        if self._code is None and _ended(self._pidfd):
            self._code = self._reap()
            os.close(self._pidfd)
        return self._code

    def signal_group(self, number: int) -> None:
        """Send a signal to the kernel's process group. Raises ProcessLookupError if the kernel has ended."""
        if self.poll() is not None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        try:
            os.killpg(os.getpgid(self.pid), number)
        except PermissionError:  # a process of the group has another user (sudo): signal the kernel alone
            pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it and its process group."""
        with suppress(ProcessLookupError):
            self.signal_group(signal.SIGKILL)

    def _reap(self) -> int:
        if self._child:
            return self._child.wait()
        if self._job:
            return self._job.wait()  # init tells when its child has ended
        return 0


def _runs_another(pid: int, init: int) -> bool:
    """Whether a process runs another program than its init: before its execve() it is a copy of init."""
    try:
        return os.readlink(f"/proc/{pid}/exe") != os.readlink(f"/proc/{init}/exe")
    except PermissionError:  # a program with other privileges
        return True


def _ended(pidfd: int) -> bool:
    poller = select.poll()  # select() cannot take descriptors from 1024 on
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))

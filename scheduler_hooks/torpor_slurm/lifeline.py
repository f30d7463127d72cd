"""Kill the application when its supervisor ends, for whatever reason.

With proctrack/cgroup, Slurm kills all processes that are left of a job. With proctrack/linuxproc or pgid, it looks for
descendants of the batch process. If the batch process was killed (by the OOM killer, say), Slurm finds none. The
application would run on unnoticed, beside the copy that the job's next run wakes.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from torpor import Job
from torpor.processes import pidfd_open, pidfd_send_signal


def tie(job: Job) -> None:
    """Start a process that waits for the end of this one, and then kills the job.

    It reads from a pipe whose other end stays open in this process for as long as this process lives.
    """
    alive = pidfd_open(job.pid)
    reader, _ = os.pipe2(os.O_CLOEXEC)  # the other end is closed by the end of this process
    if os.fork() == 0:
        try:
            _wait_and_kill(job, alive, reader)
        finally:
            os._exit(0)
    os.close(alive)
    os.close(reader)


def _wait_and_kill(job: Job, alive: int, reader: int) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it must outlive the supervisor
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (alive, reader, job.init.status_fd):
            with suppress(OSError):
                os.close(fd)
    os.read(reader, 1)
    with suppress(ProcessLookupError):
        pidfd_send_signal(alive, 0)  # the PID is still the job's
        job.send_signal(signal.SIGKILL)  # not if the command has ended: its background processes live on

"""The application ends with its supervisor, however that ends.

Slurm kills what is left of a job by its cgroup. With proctrack/linuxproc or pgid it looks for the descendants of the
batch process, and finds none when that was killed (for want of memory, say): the application would run on unseen,
beside the copy of it that the job's next run wakes.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from torpor import Job
from torpor.processes import pidfd_open, pidfd_send_signal


def tie(job: Job) -> None:
    """Have a process of its own wait for the end of this one, and kill the job then.

    It holds nothing but the end of a pipe, of which the other end is open in this process for as long as it lives.
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
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it goes last
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (alive, reader):
            with suppress(OSError):
                os.close(fd)
    os.read(reader, 1)
    with suppress(ProcessLookupError):
        pidfd_send_signal(alive, 0)  # the PID is still the job's
        job.send_signal(signal.SIGKILL)

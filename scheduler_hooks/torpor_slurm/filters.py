"""Wait for the filters that the application leaves behind: the tee of `exec > >(tee log)` in a script.

Such a process still reads what the application has written last. When the supervisor exits, Slurm kills all that is
left of the job.
"""

from __future__ import annotations

import os
import select
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from torpor.processes import pidfd_open
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.step import job_processes

LONGEST = 2.0
"""Seconds. A process that reads from a pipe may also be a daemon, which never ends."""


def wait_for_end(environment_file: Path) -> None:
    """Wait until all processes of a job have ended whose standard input is a pipe, but no longer than LONGEST.

    Args:
        environment_file: the job's ($TORPOR_ENV_FILE): its processes have that variable.
    """
    until = time.monotonic() + LONGEST
    with ExitStack() as stack:
        filters = []
        for pid, _ in job_processes.environments({ENV_FILE: str(environment_file)}):
            with suppress(OSError):  # it has ended
                if stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/0").st_mode):
                    filters.append(pidfd_open(pid))
                    stack.callback(os.close, filters[-1])
        for pidfd in filters:
            select.select([pidfd], [], [], max(0.0, until - time.monotonic()))

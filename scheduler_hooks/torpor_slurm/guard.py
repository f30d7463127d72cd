"""Requeue a job whose supervisor hangs in a store that does not answer, as on a hard NFS mount whose server is gone.

No signal and no time limit interrupts a system call on such a file system. A second process, which never uses the
store, notices that the supervisor makes no progress, and asks the controller what it would have asked. Slurm itself
requeues a job that it preempts with PreemptMode=REQUEUE, but not with CANCEL, nor at the time limit.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import time
from contextlib import suppress

from torpor.errors import TorporError
from torpor_slurm import controller
from torpor_slurm.preemption_cause import REACTIONS, Cause, find_cause
from torpor_slurm.run_options import Options

LOOK = 2.0
"""Seconds between two checks of the supervisor."""
SILENT = 20.0
"""Seconds without a sign of the supervisor, after which the controller is asked what happens to the job."""
ASK = 10.0
"""Seconds between two questions to the controller."""
LAST = 10.0
"""Seconds before the end of a grace time or the time limit at which the job is requeued. A save that is merely slow
loses nothing by it: after a requeue it still has KillWait."""
LONGEST_BEGIN = 120.0
"""Seconds that a run may take to read what earlier runs have left: twice STORE_PATIENCE. A wake may take longer."""
_SIGN = struct.Struct("d?")


class Guard:
    """The guard of one run. Its process ends with this one."""

    def __init__(self, job: str, restarts: int, options: Options) -> None:
        self._job, self._restarts, self._options = job, restarts, options
        self._shared = mmap.mmap(-1, _SIGN.size)  # anonymous, and shared with the process of `post`
        self.sign(begun=False)

    def sign(self, *, begun: bool = True) -> None:
        """Show that the supervisor makes progress.

        Args:
            begun: whether it has read what earlier runs have left.
        """
        _SIGN.pack_into(self._shared, 0, time.monotonic(), begun)

    def post(self) -> None:
        """Start the process."""
        reader, _ = os.pipe2(os.O_CLOEXEC)  # the other end is closed by the end of this process
        if os.fork() == 0:
            try:
                _leave_everything(reader)
                self.watch(reader)
            finally:
                os._exit(0)
        os.close(reader)

    def watch(self, ended: int) -> None:
        """Watch the supervisor until it has ended or the job is requeued.

        Args:
            ended: a descriptor that becomes readable when the supervisor ends.
        """
        asked = 0.0
        while not select.select([ended], [], [], LOOK)[0]:
            now = time.monotonic()
            last, begun = _SIGN.unpack_from(self._shared)
            silent = now - last
            if silent < SILENT or now - asked < ASK:
                continue
            asked = now
            with suppress(TorporError):  # the controller does not answer, or refuses: it is asked again
                if self._is_due() if begun else silent >= LONGEST_BEGIN:
                    controller.requeue(self._job)
                    return

    def _is_due(self) -> bool:
        """Whether Slurm ends the job within LAST seconds for a reason after which it is to run again."""
        now = time.time()
        record = controller.job_record(self._job)
        found = find_cause(record, restarts=self._restarts, now=now, lead=LAST, warned=False)
        limit = found.cause is Cause.TIME_LIMIT and self._options.on_timeout == "requeue"
        near = found.deadline is None or found.deadline - now <= LAST
        return near and (limit or REACTIONS[found.cause].requeues)


def _leave_everything(reader: int) -> None:
    """Hold nothing that may be in the store, and outlive the supervisor's signals."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the list itself
            if fd < 3:
                os.dup2(nothing, fd)
            elif fd != reader:
                os.close(fd)

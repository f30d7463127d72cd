"""Save the application of a Slurm job: measure how long it takes, report notices and errors, and time the retries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torpor
from torpor import Snapshot, processes
from torpor.errors import TorporError
from torpor_slurm import srun_wrapper
from torpor_slurm.job_directory import RUN_TAG, JobDirectory
from torpor_slurm.messages import Failures, tell

FIRST_RETRY, LAST_RETRY = 0.1, 3.0
"""Seconds after which a failed save is tried again: the first time (the cause may be over soon), and at most."""
UNKNOWN_GRACE = 10.0
"""Seconds that a job is assumed to have left if Slurm does not say when it ends it."""
FIRST_RATE = 100e6
"""Bytes per second that a save is assumed to reach until one was measured."""


class Saving:
    """The saves of one run of a job."""

    def __init__(self, directory: JobDirectory, restarts: int, with_files: Sequence[str] = ()) -> None:
        self.directory = directory
        self.with_files = with_files
        self.restarts = restarts
        self.series = torpor.Series()
        self.rate = FIRST_RATE
        """Bytes of memory per second at which a full save is written."""
        self.failures = Failures(directory)
        self.retry = FIRST_RETRY
        """Seconds to wait after the next failed save."""
        self.succeeded = False
        """Whether a save has succeeded in this run."""
        self._held: int | None = None
        self._until = 0.0
        self._told = False
        """Whether the application was sent the signal that was held back."""
        self._printed: set[str] = set()
        """The notices of snapshots that were printed for the user: each is printed once."""

    def save(self, pid: int, then: Literal["run", "kill"], found: list[Snapshot]) -> bool:
        """Take a snapshot. Return False if that failed: then the user was told why, and the application runs on.

        Args:
            pid: the root of the application's process tree.
            then: whether it runs on or ends.
            found: the snapshots of earlier runs that this run may wake.
        """
        if then == "kill" and self._told:
            return False  # it may be ending: woken in the middle of that it would seem to have finished
        began = time.monotonic()
        stats = torpor.Stats()
        try:
            srun_wrapper.refuse_real_srun(pid)
            snapshot = torpor.checkpoint(
                pid,
                store=self.directory.store,
                then=then,
                tags={RUN_TAG: str(self.restarts), "slurm-job": self.directory.job},
                series=self.series,
                with_files=self.with_files,
                stats=stats,
            )
        except Exception as error:  # any error, also a defect of Torpor: the job must survive it, and runs on
            # If the application has ended meanwhile, or is about to, the error may be any: do not show it.
            self.failures.tell("not saved", error, silent=processes.is_ending(pid))
            return False
        self.succeeded = True
        self.failures.over()
        self.retry = FIRST_RETRY
        took = time.monotonic() - began
        self._measure(snapshot, took)
        try:
            self.directory.prune(self.restarts, found)
            pause = stats.pause_ns / 1e9
            self.directory.update_state(saved=time.time(), save_seconds=took, bytes=snapshot.size, pause_seconds=pause)
            self.directory.store.pin(snapshot.id)  # against `torpor rm` and `torpor prune`: the job may wait in it
        except TorporError as error:
            self.directory.log(f"saved, but afterwards: {error}")
        self.directory.log(f"saved {snapshot.id}, {snapshot.size} bytes in {took:.2f} s")
        self._tell_notices(snapshot)
        return True

    def next_retry(self) -> float:
        """Seconds after which a failed save is tried again: twice as many each time, up to LAST_RETRY."""
        wait = self.retry
        self.retry = min(LAST_RETRY, 2 * wait)
        return wait

    def hold(self, number: int, deadline: float | None) -> None:
        """Keep back a signal that the application catches, until half of the time that is left is over.

        Args:
            number: the signal.
            deadline: when Slurm ends the application (seconds since the epoch; None: not known).
        """
        if self._held is None:
            left = UNKNOWN_GRACE if deadline is None else max(0.0, deadline - time.time())
            self._held, self._until = number, time.monotonic() + left / 2

    def due(self) -> int | None:
        """The signal that was held back, once, when its time has come. From then on nothing is saved and killed."""
        if self._held is None or self._told or time.monotonic() < self._until:
            return None
        self._told = True
        return self._held

    def let_go(self) -> None:
        """Forget the signal that is held back: the job is not to end any more."""
        self._held, self._told = None, False

    def _measure(self, snapshot: Snapshot, took: float) -> None:
        rate = max(1.0, snapshot.size / took)
        # An incremental save may lower the measured rate, but must not raise it: it wrote only a part of the memory.
        self.rate = rate if snapshot.written > snapshot.size / 2 else min(rate, self.rate)

    def _tell_notices(self, snapshot: Snapshot) -> None:
        for notice in snapshot.notices:
            if notice not in self._printed:
                self._printed.add(notice)
                self.directory.log(f"a wake will not bring back all: {notice}")
                tell(f"saved, but {notice}")

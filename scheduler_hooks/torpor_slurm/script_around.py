"""The batch script that called `torpor run`, without exec, and would go on when `torpor run` exits.

When the application was saved and the job requeued, Slurm ends the script a moment later. Until then the script must
not execute its next lines: they expect that the application has finished. So `torpor run` does not exit before.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torpor import processes
from torpor.errors import TorporError
from torpor_slurm import controller
from torpor_slurm.allocation import Allocation

LONGEST = 10.0
"""Seconds that Slurm has to end the script. A shell runs its trap for SIGTERM only when `torpor run` has exited."""
_LOOK = 0.1
"""Seconds between two checks."""


class ScriptAround:
    """The batch script, if it waits for this process."""

    def __init__(self, allocation: Allocation) -> None:
        """Find out whether a script waits for this process. To be called at the begin, while the script still lives."""
        self._parent = os.getppid()
        # In a step the parent is slurmstepd, and the script waits for srun.
        self._waits = allocation.in_step or _name(self._parent) != "slurmstepd"
        self._is_batch_process = self._waits and not allocation.in_step

    @property
    def ends_at_once(self) -> bool:
        """Whether Slurm's SIGTERM ends the script before this process can hear of it.

        Slurm sends SIGTERM to the batch process alone, and kills all others once that has ended. If the script outlives
        SIGTERM, the sentinel tells this process.
        """
        return self._is_batch_process and processes.dies_of(self._parent, signal.SIGTERM)

    def warnings(self, partition: str) -> list[str]:
        """Messages for the user, if a preemption in this partition would end the script at once."""
        if not self.ends_at_once:
            return []
        try:
            grace = controller.notice(partition).grace
        except TorporError:
            return []
        if grace:
            return []
        at_once = f"partition {partition} has no GraceTime: at a preemption Slurm ends this script at once"
        return [f"warning: {at_once}, and the job is not saved. Use `exec torpor run`, or begin with `trap exit TERM`"]

    def wait_for_its_end(self) -> None:
        """Wait until Slurm sends SIGTERM to this process or has ended the script, but no longer than LONGEST.

        Return at once if no script waits. The caller must have blocked SIGTERM.
        """
        until = time.monotonic() + LONGEST
        while self._waits and os.getppid() == self._parent and time.monotonic() < until:
            if signal.sigtimedwait({signal.SIGTERM}, _LOOK):
                return


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""

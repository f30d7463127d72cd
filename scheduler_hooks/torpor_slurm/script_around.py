"""The batch script around a `torpor run` that it has not exec'ed.

When the job has left for its next run, Slurm ends the script in a moment. In that moment the script must not go on with
its next lines: they are for when the application has finished.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torpor_slurm.allocation import Allocation

LONGEST = 10.0
"""Seconds that Slurm has to end the script. One with a trap for SIGTERM runs that when `torpor run` has ended."""
_LOOK = 0.1
"""Seconds between two looks."""


class ScriptAround:
    """The script, if there is one that would go on."""

    def __init__(self, allocation: Allocation) -> None:
        """Look for it. To be called while it is there."""
        self._parent = os.getppid()
        # In a step the parent is slurmstepd, and the script waits for srun.
        self._waits = allocation.in_step or _name(self._parent) != "slurmstepd"

    def wait_for_its_end(self) -> None:
        """Return when Slurm ends this process or the script, at the latest after LONGEST; at once if there is none.

        The caller blocks SIGTERM.
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

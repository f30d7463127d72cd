"""The stand-in for srun: below a supervisor, `srun` runs its step inside the job's process tree (package `step`)."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress

import torpor
from torpor import processes
from torpor.errors import Reason, Refused
from torpor_slurm.shell import shebang

SCRIPT = f'{shebang()}exec {shlex.join([sys.executable, *torpor.isolation()])} -m torpor_slurm.step "$@"\n'
"""The script named srun that the application finds in its PATH."""


def refuse_real_srun(pid: int) -> None:
    """Refuse to save a process tree with a real srun (called by its path): its step's tasks would not be saved.

    Raises:
        Refused: there is a real srun in the tree.
    """
    for one in processes.tree(pid):
        with suppress(OSError):
            if os.path.basename(os.readlink(f"/proc/{one}/exe")) == "srun":
                why_not = "slurmstepd runs the tasks of its step, and they would not be in the snapshot"
                reason = Reason(f"srun, process {one}", why_not, "call it as srun, by name")
                raise Refused("the job cannot be saved", [reason])

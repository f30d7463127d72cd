"""An application's processes as /proc tells of them: how much memory they have, and a srun that would not be kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torpor.errors import Reason, Refused


def processes(pid: int) -> Iterator[Path]:
    """The directories in /proc of a tree's processes; of those that end meanwhile, some."""
    todo = [pid]
    while todo:
        one = Path(f"/proc/{todo.pop()}")
        yield one
        with suppress(OSError):
            for task in (one / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())


def resident(pid: int) -> int:
    """Bytes of memory of a tree, pages that are shared counted in each process; 0 when it is gone."""
    total = 0
    for one in processes(pid):
        with suppress(OSError):
            total += int((one / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def refuse_steps(pid: int) -> None:
    """Slurm's own srun in a tree was called by its path: what it runs is outside of the tree, and would be lost.

    Raises:
        Refused: there is one.
    """
    for one in processes(pid):
        with suppress(OSError):
            if os.path.basename(os.readlink(one / "exe")) == "srun":
                why_not = "what it runs are Slurm's children, not the job's, and would not be in a snapshot"
                reason = Reason(f"srun, process {one.name}", why_not, "call it as srun, by name")
                raise Refused("the job cannot be saved", [reason])

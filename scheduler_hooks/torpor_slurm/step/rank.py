"""The program that the MPI launcher starts as each rank: it executes the task that srun has planned (mpi.py)."""

from __future__ import annotations

import json
import os

from torpor_slurm.step.mpi import PLAN
from torpor_slurm.step.tasks import Binding, Task

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
"""The variables that hold a rank's number: of Open MPI, of Hydra (MPICH), and of any PMIx server."""


def main() -> None:
    """Replace this process by the task."""
    plan = json.loads(os.environ.pop(PLAN))
    number = next(int(os.environ[name]) for name in _RANKS if name in os.environ)
    stdio = []
    for stream, fd in enumerate(plan["stdio"][number]):
        if fd is None:
            stdio.append(stream)
        else:  # a descriptor of srun: a pipe, or a file that only this task has
            flags = os.O_WRONLY | os.O_APPEND if stream else os.O_RDONLY
            stdio.append(os.open(f"/proc/{plan['srun']}/fd/{fd}", flags | os.O_CLOEXEC))
    masks = [frozenset(mask) for mask in plan["masks"]] if plan["masks"] else None
    bound = Binding(plan["holds"], masks, plan["bound"], plan["shares"])
    Task(number, plan["commands"][number], stdio).become({**os.environ, **plan["variables"]}, bound)


if __name__ == "__main__":
    main()

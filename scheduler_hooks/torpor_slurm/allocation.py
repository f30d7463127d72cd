"""What Slurm gives a job: where this process runs, and as which run of which job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torpor.errors import Reason, Refused

ENV_FILE = "TORPOR_ENV_FILE"
"""The variable that tells an application where it finds its present allocation's SLURM_*."""


@dataclass(frozen=True)
class Allocation:
    """The surroundings of a job's process."""

    job: str
    cluster: str
    node: str
    restarts: int
    """How often Slurm has restarted the job: 0 in its first run."""
    in_step: bool
    """This process runs in a step (`srun torpor run ...`), which hears warnings itself."""
    variables: Mapping[str, str]
    """All SLURM_* of this run."""

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Allocation | None:
        """The batch job that this process is in; None outside of one, as in salloc or an interactive srun.

        Raises:
            Refused: it has what cannot be kept: several nodes, several tasks in a step, GPUs.
        """
        found = os.environ if environment is None else environment
        allocation = cls.around(found)
        if allocation and (reasons := _refusals(found)):
            raise Refused(f"job {allocation.job} cannot be kept", reasons)
        return allocation

    @classmethod
    def around(cls, found: Mapping[str, str]) -> Allocation | None:
        """As `here`, of any job: what is to be kept may not be all of it."""
        job = found.get("SLURM_JOB_ID", "")
        if not job.isdecimal() or "SLURMD_NODENAME" not in found or found.get("ENVIRONMENT") != "BATCH":
            return None  # slurmd sets ENVIRONMENT for batch scripts; nothing else can be requeued
        return cls(
            job=job,
            cluster=found.get("SLURM_CLUSTER_NAME", "cluster"),
            node=found["SLURMD_NODENAME"],
            restarts=int(found.get("SLURM_RESTART_COUNT", "0")),
            in_step=found.get("SLURM_STEP_ID", "").isdecimal(),
            variables={name: value for name, value in found.items() if name.startswith("SLURM")},
        )


def is_supervised(environment: Mapping[str, str], allocation: Allocation) -> bool:
    """Whether this process is below a supervisor of the same job: a job's `torpor run` in a script that has one."""
    place = environment.get(ENV_FILE, "")
    return os.path.basename(os.path.dirname(place)) == f"{allocation.cluster}-{allocation.job}"


def _refusals(found: Mapping[str, str]) -> list[Reason]:
    reasons = []
    nodes = found.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1":
        reasons.append(several_nodes(nodes))
    if found.get("SLURM_HET_SIZE", "1") != "1":
        reasons.append(
            Reason("a heterogeneous job", "a snapshot is of one node's processes", "submit its parts singly")
        )
    if found.get("SLURM_STEP_ID", "").isdecimal() and found.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        tasks = found["SLURM_STEP_NUM_TASKS"]
        reasons.append(
            Reason(
                "the step",
                f"it has {tasks} tasks, and each would be a supervisor of the same job",
                "use srun --ntasks=1, and let the application start its processes itself",
            )
        )
    if gpus := found.get("SLURM_JOB_GPUS") or found.get("SLURM_STEP_GPUS"):
        reasons.append(gpus_held(gpus))
    return reasons


def several_nodes(nodes: str) -> Reason:
    """Why a job on several nodes is refused."""
    return Reason(
        f"{nodes} nodes",
        "a snapshot is of one node's processes; what is between nodes (MPI) is not kept",
        "use --nodes=1, or the application's own checkpoints",
    )


def gpus_held(gpus: str) -> Reason:
    """Why a job with GPUs is refused."""
    return Reason(f"GPUs ({gpus})", "what is in a GPU's memory is not kept", "ask for no GPU, or use plain sbatch")

"""The Slurm allocation of this process: which job, which node, and how often Slurm has restarted the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torpor.errors import Reason, Refused

ENV_FILE = "TORPOR_ENV_FILE"
"""The environment variable that names a file with the SLURM_* variables of the current allocation."""


@dataclass(frozen=True)
class Allocation:
    """The allocation that a process of a batch job runs in."""

    job: str
    cluster: str
    node: str
    restarts: int
    """How often Slurm has restarted the job: 0 in its first run."""
    in_step: bool
    """Whether this process runs in a step (`srun torpor run ...`). Slurm sends its warnings to steps directly."""
    variables: Mapping[str, str]
    """All SLURM_* variables of this run."""

    @property
    def names(self) -> frozenset[str]:
        """The job's id, and for a task of a job array also the id in the names of its files (%A_%a)."""
        array = self.variables.get("SLURM_ARRAY_JOB_ID")
        return frozenset({self.job, *([f"{array}_{self.variables.get('SLURM_ARRAY_TASK_ID')}"] if array else [])})

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Allocation | None:
        """The batch job that this process is in; None outside of one, as in salloc or an interactive srun.

        Raises:
            Refused: the job uses what Torpor cannot save: several nodes, several tasks in a step, GPUs.
        """
        found = os.environ if environment is None else environment
        allocation = cls.around(found)
        if allocation and (reasons := _refusals(found)):
            raise Refused(f"job {allocation.job} cannot be saved", reasons)
        return allocation

    @classmethod
    def around(cls, found: Mapping[str, str]) -> Allocation | None:
        """Like `here`, but no job is refused: for a caller that saves only a part of the job."""
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
    """Whether this process runs below a supervisor of the same job: `torpor run` in a script of `torpor sbatch`."""
    return f"{allocation.cluster}-{allocation.job}" in environment.get(ENV_FILE, "").split(os.sep)


def _refusals(found: Mapping[str, str]) -> list[Reason]:
    reasons = []
    nodes = found.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1":
        reasons.append(several_nodes(nodes))
    if found.get("SLURM_HET_SIZE", "1") != "1":
        reasons.append(
            Reason(
                "a heterogeneous job",
                "a snapshot holds the processes of one node",
                "submit each by itself",
            )
        )
    if found.get("SLURM_STEP_ID", "").isdecimal() and found.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        tasks = found["SLURM_STEP_NUM_TASKS"]
        reasons.append(
            Reason(
                "the step",
                f"it has {tasks} tasks, and each task would start a supervisor of the same job",
                "use srun --ntasks=1 and let the application start its own processes",
            )
        )
    if gpus := found.get("SLURM_JOB_GPUS") or found.get("SLURM_STEP_GPUS"):
        reasons.append(gpus_held(gpus))
    return reasons


def several_nodes(nodes: str) -> Reason:
    """Why a job on several nodes is refused."""
    return Reason(
        f"{nodes} nodes",
        "a snapshot holds the processes of one node; connections between nodes (MPI) are not saved",
        "use --nodes=1, or the application's own checkpoints",
    )


def gpus_held(gpus: str) -> Reason:
    """Why a job with GPUs is refused."""
    return Reason(f"GPUs ({gpus})", "the memory of a GPU is not saved", "request no GPU, or use plain sbatch")

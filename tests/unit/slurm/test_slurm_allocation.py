"""The allocation that a process runs in, and what is refused there."""

from __future__ import annotations

import pytest

from tests.unit.slurm.slurm_job import environment
from torpor.errors import Refused
from torpor_slurm.allocation import Allocation, is_supervised


def test_outside_of_a_job_there_is_no_allocation() -> None:
    assert Allocation.here({}) is None
    assert Allocation.here({"SLURM_JOB_ID": "12"}) is None, "salloc's shell on a login host"
    assert Allocation.here(environment(ENVIRONMENT="")) is None, "srun --pty bash"


def test_an_allocation_and_its_run() -> None:
    found = Allocation.here(environment(SLURM_RESTART_COUNT="3", HOME="/h"))
    assert found is not None
    assert (found.job, found.cluster, found.node, found.restarts, found.in_step) == ("12", "c", "n1", 3, False)
    assert "HOME" not in found.variables
    assert is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-12/env"}, found)
    assert is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-12/then/2/env"}, found), "a script's second command"
    assert not is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-11/env"}, found), "submitted from within another job"
    assert not is_supervised({}, found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, "2 nodes: a snapshot holds the processes of one node"),
        ({"SLURM_JOB_GPUS": "0,1"}, "GPUs"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "it has 4 tasks"),
    ],
)
def test_what_cannot_be_kept_is_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Allocation.here(environment(**more))

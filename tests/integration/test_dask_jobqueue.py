"""dask-jobqueue on a real Slurm: workers are jobs, and one is preempted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_jobqueue import SLURMCluster
from distributed import Client

from tests.integration import slurm_cluster
from tests.integration.dask_cluster import PATIENCE, runs, tree, until
from tests.integration.slurm_cluster import PACKAGES, missing
from tests.users import User

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
    pytest.mark.timeout(180),
]
LEAVES = 40


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[slurm_cluster.Cluster]:
    with slurm_cluster.cluster(grace=30) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


def workers(slurm: slurm_cluster.Cluster, tmp: Path, **more: Any) -> SLURMCluster:
    """A SLURMCluster whose workers bring Torpor with them: its program need not know of it."""
    return SLURMCluster(
        queue="low",
        cores=1,
        memory="1GB",
        nanny=False,  # one that Slurm has to kill leaves its semaphores behind
        # a step hears of a preemption at the start of the grace time, a batch script only at its end
        python=f"exec srun --ntasks=1 --mem=0 {sys.executable}",
        worker_extra_args=["--preload", "torpor.scheduler_hooks.dask", "--host", "127.0.0.1"],
        job_script_prologue=[
            f"export DASK_TORPOR__STORE={tmp / 'store'}",
            "export DASK_TORPOR__WARNING=SIGTERM DASK_TORPOR__MIN_DURATION=10ms DASK_TORPOR__GATHER=10s",
        ],
        job_extra_directives=["--exclusive"],  # a node each
        local_directory=str(tmp / "scratch"),
        log_directory=str(tmp / "logs"),
        scheduler_options={"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
        **more,
    )


def suspicions(dask_scheduler: Any) -> int:
    return sum(task.suspicious for task in dask_scheduler.tasks.values())


def test_a_preempted_job_ends_its_task_and_nothing_runs_again(
    slurm: slurm_cluster.Cluster, ordinary_account: User, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with workers(slurm, tmp_path) as cluster, Client(cluster) as client:
        cluster.scale(2)
        client.wait_for_workers(2, PATIENCE)
        result = tree(client, log, leaves=LEAVES, seconds=0.2)
        until("part of the graph", lambda: runs(log).total() >= LEAVES // 2)
        preemptor = slurm.preempt(ordinary_account, "n1")
        slurm.wait_state(preemptor, "RUNNING")
        assert result.result(PATIENCE) == sum(range(LEAVES))
        assert set(runs(log).values()) == {1}
        assert len(runs(log)) == 2 * LEAVES - 1
        assert client.run_on_scheduler(suspicions) == 0
        logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
        assert "Reason: torpor-preemption" in logs
        slurm.release(preemptor)

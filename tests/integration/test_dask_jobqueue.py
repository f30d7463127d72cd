"""dask-jobqueue on a real Slurm: workers are jobs, and one is preempted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import pytest
from dask_jobqueue import SLURMCluster
from distributed import Client, wait

from tests.integration import slurm_cluster
from tests.integration.dask_cluster import PATIENCE, runs, tree, until
from tests.integration.dask_tasks import leaf, patient, under_way
from tests.integration.slurm_cluster import PACKAGES, missing
from tests.users import BIN, User

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
    pytest.mark.timeout(180),
]
LEAVES = 24


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[slurm_cluster.Cluster]:
    with slurm_cluster.cluster() as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


def workers(
    slurm: slurm_cluster.Cluster, tmp: Path, launcher: str, settings: str, directives: Sequence[str] = ()
) -> SLURMCluster:
    """A SLURMCluster whose workers bring Torpor with them: its program need not know of it."""
    return SLURMCluster(
        queue="low",
        cores=1,
        memory="1GB",
        nanny=False,  # one that Slurm has to kill leaves its semaphores behind
        python=f"exec {launcher} {sys.executable}",
        worker_extra_args=["--preload", "torpor_dask", "--host", "127.0.0.1"],
        job_script_prologue=[f"export DASK_TORPOR__STORE={tmp / 'store'} DASK_TORPOR__MIN_DURATION=10ms {settings}"],
        job_extra_directives=["--exclusive", *directives],  # a node each
        local_directory=str(tmp / "scratch"),
        log_directory=str(tmp / "logs"),
        scheduler_options={"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    )


def has_torpor(dask_worker: Any) -> bool:
    return "torpor" in dask_worker.plugins


def returned(dask_scheduler: Any) -> int:
    return int(dask_scheduler.plugins["torpor"].counters.returned)


def suspicions(dask_scheduler: Any) -> int:
    return sum(task.suspicious for task in dask_scheduler.tasks.values())


def story(keys: list[str], dask_scheduler: Any) -> str:
    """What happened to some tasks, for a message."""
    lines = [str(line) for line in dask_scheduler.story(*keys)]
    return "\n".join([str(vars(dask_scheduler.plugins["torpor"].counters)), *lines])


def test_a_preempted_job_ends_its_task_and_nothing_runs_again(
    slurm: slurm_cluster.Cluster, ordinary_account: User, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # a step hears of a preemption at the start of the grace time, a batch script only at its end
    step = "srun --ntasks=1 --mem=0"
    with (
        workers(slurm, tmp_path, step, "DASK_TORPOR__WARNING=SIGTERM DASK_TORPOR__GATHER=10s") as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(2)
        client.wait_for_workers(2, PATIENCE)
        until("Torpor", lambda: all(client.run(has_torpor).values()))
        result = tree(client, log, leaves=LEAVES, seconds=0.2)
        until("part of the graph", lambda: runs(log).total() >= LEAVES // 2)
        preemptor = slurm.preempt(ordinary_account, "n1")
        slurm.wait_state(preemptor, "RUNNING")
        assert result.result(PATIENCE) == sum(range(LEAVES))
        logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
        again = [key for key, count in runs(log).items() if count > 1]
        assert not again, f"{client.run_on_scheduler(story, keys=again)}\n{logs}"
        assert len(runs(log)) == 2 * LEAVES - 1
        assert client.run_on_scheduler(suspicions) == 0
        assert "Reason: torpor-preemption" in logs
        slurm.release(preemptor)


def test_a_preempted_job_is_woken_on_another_node_with_its_data_and_its_running_task(
    slurm: slurm_cluster.Cluster, ordinary_account: User, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    supervisor = f"{BIN / 'torpor'} run --store {tmp_path / 'store'} --"
    directives = ["--requeue", "--open-mode=append"]
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"}),  # not to cancel the job meanwhile
        workers(slurm, tmp_path, supervisor, "DASK_TORPOR__HOLD='10 minutes'", directives) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(1)
        client.wait_for_workers(1, PATIENCE)
        (name,) = (worker["name"] for worker in client.scheduler_info()["workers"].values())
        until("Torpor", lambda: all(client.run(has_torpor).values()))
        with dask.annotate(torpor="never"):
            data = client.submit(leaf, 7, str(log))
            wait(data, PATIENCE)
            task = client.submit(patient, str(log), str(go), data)
        until("the task", lambda: client.run_on_scheduler(under_way, key=task.key))
        number = slurm.ask("squeue", "-h", "-o", "%i")
        before = slurm.job(number)["NodeList"]
        preemptor = slurm.preempt(ordinary_account, before)
        slurm.hurry(number, before)
        until("the return", lambda: client.run_on_scheduler(returned))
        assert [worker["name"] for worker in client.scheduler_info()["workers"].values()] == [name]
        assert slurm.job(number)["NodeList"] != before
        go.touch()
        assert task.result(PATIENCE) == 49
        assert data.result(PATIENCE) == 7
        assert runs(log)[data.key] == 1
        assert runs(log)[task.key] == 2  # it began once and ended once
        slurm.release(preemptor)

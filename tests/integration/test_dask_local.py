"""The one line, with LocalCluster; page and metrics; workloads under random kills against undisturbed ones."""

from __future__ import annotations

import os
import random
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, Future, Scheduler, wait
from distributed.shuffle._exceptions import P2PConsistencyError

from tests.integration.dask_cluster import PATIENCE, Cluster, cluster, lazy_tree, local_cluster, runs, until, workload
from tests.integration.dask_tasks import leaf
from torpor_dask import Resume

pytestmark = pytest.mark.timeout(180)


def fetch(client: Client, page: str) -> str:
    port = client.scheduler_info()["services"]["dashboard"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}") as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("processes", [True, False])
def test_the_one_line(tmp_path: Path, processes: bool) -> None:
    log = tmp_path / "log"
    with local_cluster(n_workers=2, threads_per_worker=1, processes=processes) as client:
        client.register_plugin(Resume(store=str(tmp_path / "store"), min_duration="10ms"))
        client.register_plugin(Resume(store=str(tmp_path / "other")))  # once is enough
        futures = [client.submit(leaf, number, str(log)) for number in range(8)]
        wait(futures, PATIENCE)
        until("storing", lambda: "dask_torpor_kept_results_total 8.0" in fetch(client, "/metrics"))
        assert "Results loaded instead of computed" in fetch(client, "/torpor")
        if processes:
            pids = client.run(os.getpid)
            os.kill(next(iter(pids.values())), signal.SIGKILL)
            assert client.gather(futures) == list(range(8))
        else:
            client.retire_workers([next(iter(client.scheduler_info()["workers"]))])
            assert client.gather(futures) == list(range(8))
        assert runs(log).total() == 8
    assert not (tmp_path / "other").exists()


def test_a_store_of_another_user_is_told_and_stops_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    with local_cluster(n_workers=1, threads_per_worker=1) as client:
        client.register_plugin(Resume(store=str(store), min_duration="10ms"))
        assert client.submit(leaf, 1, str(tmp_path / "log")).result(PATIENCE) == 1
        until("the failure", lambda: "can be written by others" in fetch(client, "/torpor"))
        assert "dask_torpor_healthy 0.0" in fetch(client, "/metrics")


def tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


@contextmanager
def suppress_p2p() -> Iterator[None]:
    """Dask's own race in restarting a shuffle, with or without us, is told, and gives no wrong result."""
    try:
        yield
    except (P2PConsistencyError, RuntimeError) as error:
        assert "P2P" in f"{type(error).__name__} {error}"


def kills(tmp_path: Path, name: str, number: int, seed: int) -> None:
    chance = random.Random(seed)
    with cluster(tmp_path, torpor__keep="all") as cluster_:
        expected = workload(name, "tasks", str(tmp_path / "undisturbed")).compute(scheduler="sync")
        cluster_.start(3)
        future = cluster_.client.compute(workload(name, "p2p", str(cluster_.log)))
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        for turn in range(number):
            if ended.wait(chance.uniform(0.2, 2.0)):
                break
            cluster_.start_worker(f"spare{turn}")
            cluster_.client.wait_for_workers(3, PATIENCE)
            cluster_.kill(chance.choice([name for name in cluster_.workers if name != f"spare{turn}"]))
        result = None
        with suppress_p2p():
            result = future.result(2 * PATIENCE)
        if result is None:
            future.release()  # the error refers to it as well
            until("Dask's forgetting of it", lambda: not cluster_.client.run_on_scheduler(tasks))
            result = cluster_.client.compute(workload(name, "p2p", str(cluster_.log))).result(2 * PATIENCE)
        if name == "dataframe":
            result, expected = result.sort_index(), expected.sort_index()
        np.testing.assert_allclose(np.asarray(result), np.asarray(expected))
        cluster_.stop()


@pytest.mark.timeout(300)  # Dask begins a shuffle anew for each worker that was lost, and waits in between
@pytest.mark.parametrize("name", ["array", "dataframe"])
def test_p2p_workloads_under_random_kills_give_what_they_give_undisturbed(tmp_path: Path, name: str) -> None:
    kills(tmp_path, name, 3, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["array", "dataframe"])
def test_many_random_kills(tmp_path: Path, name: str, seed: int) -> None:
    kills(tmp_path, name, 8, seed)


def progressed(dask: Cluster, result: Future[Any], count: int) -> bool:
    """Whether so many tasks have run, or all."""
    return runs(dask.log).total() >= count or result.done()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_kills_and_restarts_of_everything_in_turn(tmp_path: Path) -> None:
    chance = random.Random(7)
    with cluster(tmp_path) as cluster_:
        for turn in range(8):
            cluster_.start()
            result = cluster_.client.compute(lazy_tree(cluster_.log, leaves=200))
            at = runs(cluster_.log).total() + chance.randrange(10, 60)
            until("progress", partial(progressed, cluster_, result, at))
            stored = {str(kept.key) for kept in cluster_.kept()}
            lines = runs(cluster_.log).total()
            if turn % 2:
                cluster_.kill(f"w{cluster_.number}0")
                until("progress", partial(progressed, cluster_, result, at + 5))
            cluster_.stop(hard=True)
            assert not stored & set(cluster_.log.read_text().splitlines()[lines:])
        cluster_.start()
        assert cluster_.client.compute(lazy_tree(cluster_.log, leaves=200)).result(600) == sum(range(200))
        cluster_.stop()

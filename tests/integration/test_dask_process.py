"""A Dask worker as a process: frozen by the engine, woken as on another node, back with what it had."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import wait

import torpor
from tests.integration.dask_cluster import PATIENCE, Cluster, cluster, runs, tree, until
from tests.integration.dask_nodes import alone, woken
from tests.integration.dask_tasks import add, drop_replica, leaf, patient, states, under_way
from torpor.store import Store

pytestmark = pytest.mark.timeout(180)


def freeze(dask: Cluster, name: str) -> torpor.Snapshot:
    """Freeze a worker, and let it die when it is kept."""
    process = dask.workers.pop(name)
    snapshot = torpor.checkpoint(process.pid, store=Store(dask.tmp / "images"), then="kill")
    process.wait()
    until("the loss", lambda: name not in names(dask))
    return snapshot


def names(dask: Cluster) -> set[str]:
    return {worker["name"] for worker in dask.info().values()}


def has_run(log: Path, count: int) -> bool:
    return runs(log).total() >= count


def is_back_or_ended(dask: Cluster, name: str, process: subprocess.Popen[bytes]) -> object:
    return name in names(dask) or process.poll()


def is_there(dask: Cluster, name: str) -> bool:
    return name in names(dask)


def begin(dask: Cluster) -> tuple[Any, Any, Path]:
    """A worker with a result that is in no store, and a task under way that needs it."""
    go = dask.tmp / "go"
    dask.start_scheduler()
    dask.start_worker("first", threads=1)
    dask.client.wait_for_workers(1, PATIENCE)
    with torpor_never():
        data = dask.client.submit(leaf, 7, str(dask.log))
        wait(data, PATIENCE)
        task = dask.client.submit(patient, str(dask.log), str(go), data)
    until("the task", lambda: dask.client.run_on_scheduler(under_way, key=task.key))
    return data, task, go


def torpor_never() -> Any:
    return dask.annotate(torpor="never")


def test_a_woken_worker_is_back_with_its_data_and_its_running_task(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__hold="10 minutes") as dask:
        data, task, go = begin(dask)
        snapshot = freeze(dask, "first")
        dask.start_worker("second", threads=1)
        dask.client.wait_for_workers(1, PATIENCE)
        found = dask.client.run_on_scheduler(states)
        assert found[data.key][0] == found[task.key][0] == "no-worker"
        with woken(tmp_path, snapshot.id):
            until("the return", lambda: names(dask) == {"first", "second"})
            until("the data", lambda: data.key in dask.client.run_on_scheduler(states))
            assert dask.client.submit(add, data, 1, str(dask.log), workers=["second"]).result(PATIENCE) == 8
            # Both have the data now, and the scheduler may have one of them drop it (ReduceReplicas).
            dask.client.run_on_scheduler(drop_replica, key=data.key, name="first")
            go.touch()
            assert task.result(PATIENCE) == 49
            assert runs(dask.log)[data.key] == 1
            assert runs(dask.log)[task.key] == 2  # it began once and ended once
            assert dask.counters()["returned"] == 2
            assert dask.counters()["loading"] == dask.counters()["origins"] == 0
            assert not any(restrictions for _, restrictions in dask.client.run_on_scheduler(states).values())
            assert dask.suspicions() == 0
            # and it is a worker like any other
            both = dask.client.submit(add, task, data, str(dask.log), workers=["first"])
            assert both.result(PATIENCE) == 56
            dask.stop()


def test_when_the_time_is_over_the_default_path_takes_over(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__hold="3s") as dask:
        data, task, go = begin(dask)
        snapshot = freeze(dask, "first")
        go.touch()
        dask.start_worker("second", threads=1)
        assert task.result(PATIENCE) == 49
        assert runs(dask.log)[data.key] == 2
        assert runs(dask.log)[task.key] == 3  # begun on both, ended on the second
        assert dask.counters()["returned"] == 0
        assert dask.counters()["loading"] == dask.counters()["origins"] == 0
        assert not any(restrictions for _, restrictions in dask.client.run_on_scheduler(states).values())
        # the process is late: it is a worker, with nothing of what it had
        with woken(tmp_path, snapshot.id):
            until("the return", lambda: names(dask) == {"first", "second"})
            dask.kill("second")
            assert dask.client.submit(add, task, data, str(dask.log)).result(PATIENCE) == 56
            dask.stop()


def test_a_second_copy_of_a_worker_is_refused(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__hold="10 minutes") as dask:
        data, task, go = begin(dask)
        snapshot = freeze(dask, "first")
        with woken(tmp_path, snapshot.id):
            until("the return", lambda: names(dask) == {"first"})
            go.touch()
            assert task.result(PATIENCE) == 49
        until("the loss", lambda: not names(dask))
        with woken(tmp_path, snapshot.id) as copy:
            copy.wait(PATIENCE)
        assert not names(dask)
        assert "the scheduler's answer is: refused" in dask.output()
        dask.start_worker("second", threads=1)
        del data
        dask.stop()


def test_scattered_data_is_back(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__hold="10 minutes", torpor__max_size=0) as dask:  # nothing is in the store
        dask.start_scheduler()
        dask.start_worker("first", threads=1)
        dask.client.wait_for_workers(1, PATIENCE)
        numbers = dask.client.scatter(list(range(10)))
        snapshot = freeze(dask, "first")
        dask.start_worker("second", threads=1)
        with woken(tmp_path, snapshot.id):
            until("the data", lambda: dask.counters()["returned"] == 10)
            assert dask.client.gather(numbers) == list(range(10))
            assert dask.counters()["loading"] == 0
            dask.stop()


def test_an_old_image_gives_no_old_value_of_a_name_used_again(tmp_path: Path) -> None:
    with cluster(tmp_path, torpor__hold="10 minutes", torpor__max_size=0) as dask:
        dask.start_scheduler()
        first = dask.start_worker("first", threads=1)
        dask.client.wait_for_workers(1, PATIENCE)
        old = dask.client.submit(leaf, 1, str(dask.log), key="name")
        wait(old, PATIENCE)
        snapshot = torpor.checkpoint(first.pid, store=Store(dask.tmp / "images"))
        old.release()
        until("forgetting", lambda: not dask.client.run_on_scheduler(states))
        new = dask.client.submit(leaf, 2, str(dask.log), key="name")
        wait(new, PATIENCE)
        dask.kill("first")
        until("the loss", lambda: not names(dask))
        with woken(tmp_path, snapshot.id):
            assert new.result(PATIENCE) == 2
            assert names(dask) == {"first"}
            assert dask.counters()["returned"] == 0
            dask.stop()


def test_a_worker_that_is_woken_on_a_node_with_another_address_is_back(tmp_path: Path) -> None:
    told = alone("dask_moved", tmp_path)
    assert (told["answer"], told["runs"]) == (49, 2)  # it began once and ended once
    (before,), (after,) = told["before"], told["after"]
    assert ("10.77.1.2" in before, "10.77.2.2" in after) == (True, True)


def in_turn(tmp_path: Path, losses: int, seed: int) -> None:
    """Freeze and wake workers of a busy cluster at any moment; some are woken too late, some stay away."""
    chance = random.Random(seed)
    with cluster(tmp_path, torpor__hold="4s") as dask, ExitStack() as stack:
        dask.start_scheduler()
        for name in ("a", "b", "c"):
            dask.start_worker(name)
        dask.client.wait_for_workers(3, PATIENCE)
        for turn in range(losses):
            result = tree(dask.client, dask.tmp / f"log{turn}", leaves=80)
            until("part of the graph", partial(has_run, dask.tmp / f"log{turn}", chance.randrange(1, 150)))
            name = chance.choice(sorted(dask.workers))
            snapshot = freeze(dask, name)
            time.sleep(chance.choice([0.0, 0.5, 6.0]))
            if chance.random() < 0.8:
                process = stack.enter_context(woken(tmp_path, snapshot.id))
                # one that was just writing to the store may be refused: what it wrote is cleaned up
                until("an outcome", partial(is_back_or_ended, dask, name, process))
            assert result.result(PATIENCE) == sum(range(80))
            del result
            dask.start_worker(f"new{turn}")
            until("a new worker", partial(is_there, dask, f"new{turn}"))
        until("forgetting", lambda: not dask.client.run_on_scheduler(states))
        assert dask.counters()["loading"] == dask.counters()["origins"] == 0
        dask.stop()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_many_freezes(tmp_path: Path, seed: int) -> None:
    in_turn(tmp_path, 8, seed)

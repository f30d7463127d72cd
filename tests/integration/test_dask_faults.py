"""Dask with Torpor when the network says nothing, and when the store does not answer."""

from __future__ import annotations

import json
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.dask_cluster import PATIENCE, Cluster, cluster, runs, tree
from tests.integration.dask_deadly import DEADLY
from tests.integration.dask_gate import GATE
from tests.integration.dask_nodes import alone
from tests.integration.dask_silent import LEAVES
from tests.integration.dask_tasks import add, leaf

pytestmark = pytest.mark.timeout(180)


def test_a_node_that_falls_silent_costs_no_stored_task(tmp_path: Path) -> None:
    told = alone("dask_silent", tmp_path)
    assert told["answer"] == sum(42 + number for number in range(LEAVES))
    assert told["workers"] == ["near"]
    assert told["stored"] == LEAVES
    assert told["loaded"] > 0
    assert told["stored and run again"] == []


def test_what_was_stored_and_not_yet_reported_is_loaded(tmp_path: Path) -> None:
    preload = json.dumps(["tests.integration.dask_deadly"])
    with cluster(tmp_path, torpor__write_through=True, distributed__worker__preload=preload) as dask:
        deadly = tmp_path / "deadly"
        deadly.touch()
        dask.env[DEADLY] = str(deadly)
        dask.start(1)
        result = dask.client.submit(leaf, 1, str(dask.log))
        assert dask.workers.pop("w10").wait(PATIENCE) == -signal.SIGKILL
        deadly.unlink()
        dask.start_worker("other")
        assert result.result(PATIENCE) == 1
        assert runs(dask.log).total() == dask.loaded() == 1
        assert dask.suspicions() == 0
        dask.stop()


def gated(tmp: Path, **config: Any) -> AbstractContextManager[Cluster]:
    """A cluster whose store does not answer while the file `gate` exists."""
    gate = "tests.integration.dask_gate"
    return cluster(
        tmp,
        distributed__scheduler__preload=json.dumps(["torpor_dask", gate]),
        distributed__worker__preload=json.dumps([gate]),
        **config,
    )


def close(dask: Cluster) -> Path:
    gate = dask.tmp / "gate"
    gate.touch()
    dask.env[GATE] = str(gate)
    return gate


def test_a_store_that_takes_its_time_holds_no_task_up(tmp_path: Path) -> None:
    with gated(tmp_path) as dask:
        gate = close(dask)
        dask.start()
        result = tree(dask.client, dask.log, leaves=20)
        assert result.result(PATIENCE) == sum(range(20))
        assert dask.kept() == []
        gate.unlink()
        dask.until_kept(result.key)
        dask.kill("w10", "w11")
        dask.start_worker("other")
        assert dask.client.submit(add, result, 1, str(dask.log)).result(PATIENCE) == sum(range(20)) + 1
        assert runs(dask.log).total() == 40
        dask.stop()


def test_a_store_that_hangs_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    with gated(tmp_path, torpor__patience="1s", torpor__warning="SIGTERM") as dask:
        gate = close(dask)
        gate.unlink()
        dask.start(1)
        futures = [dask.client.submit(leaf, number, str(dask.log)) for number in range(4)]
        assert dask.client.gather(futures) == [0, 1, 2, 3]
        dask.until_kept(*(future.key for future in futures))
        close(dask)
        dask.kill("w10")
        dask.start_worker("other")
        assert dask.client.gather(futures) == [0, 1, 2, 3]
        assert dask.counters()["unreadable"] == 4
        assert set(runs(dask.log).values()) == {2}
        late = dask.client.submit(leaf, 9, str(dask.log))  # its worker cannot store it, and leaves all the same
        assert late.result(PATIENCE) == 9
        leaving = dask.workers.pop("other")
        leaving.terminate()
        assert leaving.wait(PATIENCE) == 0
        gate.unlink()
        dask.stop()


def test_write_through_to_a_store_that_hangs_ends_after_a_time(tmp_path: Path) -> None:
    with gated(tmp_path, torpor__patience="1s", torpor__write_through=True) as dask:
        gate = close(dask)
        dask.start(1)
        assert dask.client.submit(leaf, 1, str(dask.log)).result(PATIENCE) == 1
        assert dask.kept() == []
        gate.unlink()
        dask.stop()

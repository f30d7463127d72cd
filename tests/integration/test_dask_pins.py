"""What Torpor relies on inside distributed, and no document promises: pinned here, by release.

A release that is not in RELEASES was not tried. When one of these tests fails there, scheduler_hooks/dask has to
follow; when all pass, add it to RELEASES.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import distributed
import pytest
from distributed import Client, LocalCluster, Scheduler, SchedulerPlugin, Worker
from distributed.shuffle._core import barrier_key
from distributed.worker_state_machine import ExecuteSuccessEvent

from tests.integration.dask_cluster import local_cluster, until
from torpor.scheduler_hooks.dask.shuffle import BARRIER

RELEASES = ("2026.8.0", "2026.1.2")

pytestmark = pytest.mark.skipif(
    distributed.__version__ not in RELEASES, reason=f"tried with distributed {', '.join(RELEASES)}"
)


class Recorder(SchedulerPlugin):
    """Writes down what happens, with the state at that moment."""

    name = "recorder"

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.seen: list[Any] = []

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == "all" and msg.get("action") == "remove-worker":
            tasks = self.scheduler.tasks
            lost = {key: (tasks[key].state, len(tasks[key].who_has or ())) for key in msg["lost-computed-tasks"]}
            scattered = {key: tasks[key].state for key in msg["lost-scattered-tasks"]}
            running = {key: tasks[key].state for key in msg["processing-tasks"]}
            self.seen.append(("event", lost, scattered, running, msg["worker"] in self.scheduler.workers))

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        self.seen.append((start, finish, key, kwargs["stimulus_id"].split("-")[0]))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.seen.append(("removed",))

    def update_graph(self, scheduler: Scheduler, *, keys: set[Any], **kwargs: Any) -> None:
        self.seen.append(("graph", {key: scheduler.tasks[key].state for key in keys}))


def seen(dask_scheduler: Scheduler) -> list[Any]:
    recorder: Any = dask_scheduler.plugins["recorder"]
    taken, recorder.seen = recorder.seen, []
    return list(taken)


def state_of(key: str, dask_scheduler: Scheduler) -> str | None:
    task = dask_scheduler.tasks.get(key)
    return task.state if task else None


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_the_event_of_a_lost_worker_comes_before_the_transitions_and_the_hook_after() -> None:
    with local_cluster(n_workers=1, threads_per_worker=1) as client:
        cluster: Any = client.cluster
        client.register_plugin(Recorder())
        done = client.submit(nap, 0.0, key="done")
        (data,) = client.scatter([b"scattered"], hash=False)
        assert done.result(30) == 0.0
        running = client.submit(nap, 30.0, key="running")
        until("running", lambda: client.run_on_scheduler(state_of, key="running") == "processing")
        client.run_on_scheduler(seen)
        (nanny,) = cluster.workers.values()
        nanny.process.process.kill()
        record: list[Any] = []
        while ("removed",) not in record:
            record += client.run_on_scheduler(seen)
        first = record[0]
        assert first == ("event", {"done": ("memory", 0)}, {data.key: "memory"}, {"running": "processing"}, False)
        moves = [item[:3] for item in record[1 : record.index(("removed",))]]
        assert ("memory", "released", "done") in moves
        assert ("memory", "forgotten", data.key) in moves
        assert ("processing", "released", "running") in moves
        assert running.status == "pending"


def test_a_graph_is_told_before_its_tasks_move_and_a_client_that_leaves_is_named_in_the_stimulus() -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            client.register_plugin(Recorder())
            assert client.submit(nap, 0.0, key="done").result(30) == 0.0
            held = client.submit(nap, 0.01, key="held")
            held.result(30)
            record = client.run_on_scheduler(seen)
            assert record[0] == ("graph", {"done": "released"})
            assert record[1][:3] == ("released", "waiting", "done")
        with Client(cluster) as client:
            record = client.run_on_scheduler(seen)
            assert [item[3] for item in record if item[1:3] == ("forgotten", "held")] == ["remove"]


def test_names_and_signatures() -> None:
    assert barrier_key("x") == BARRIER + "x"  # type: ignore[arg-type]
    assert list(inspect.signature(Worker.execute).parameters) == ["self", "key", "stimulus_id"]
    assert {"key", "run_id", "value", "start", "stop", "nbytes"} <= set(ExecuteSuccessEvent.__annotations__) | {"key"}
    assert {"address", "expected", "stimulus_id"} <= set(inspect.signature(Scheduler.remove_worker).parameters)
    assert list(inspect.signature(Scheduler.new_task).parameters)[:4] == ["self", "key", "spec", "state"]
    assert {"run_spec", "run_id", "has_lost_dependencies", "suspicious", "exception_blame"} <= set(
        distributed.scheduler.TaskState.__slots__
    )
    preloads = inspect.getsource(Scheduler.start_unsafe)
    assert preloads.index("self.preloads.start()") < preloads.index("plugin.start(self)")

"""What Torpor relies on inside distributed, and no document promises: pinned here, by release.

A release that is not in RELEASES was not tried. When one of these tests fails there, scheduler_hooks/torpor_dask has to
follow; when all pass, add it to RELEASES. The last test runs the others with the oldest release.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import distributed
import pytest
from distributed import Client, LocalCluster, Scheduler, SchedulerPlugin, Worker
from distributed.diskutils import DIR_LOCK_EXT
from distributed.shuffle._core import barrier_key
from distributed.worker_state_machine import (
    RUN_ID_SENTINEL,
    ComputeTaskEvent,
    ExecuteFailureEvent,
    ExecuteSuccessEvent,
    TaskFinishedMsg,
    WorkerState,
)

from tests.integration.dask_cluster import PATIENCE, local_cluster, until
from torpor_dask.shuffle import BARRIER

RELEASES = ("2026.8.0", "2026.1.2")

tried = pytest.mark.skipif(
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


told = threading.Event()


def until_told() -> None:
    told.wait(PATIENCE)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@tried
def test_the_event_of_a_lost_worker_comes_before_the_transitions_and_the_hook_after() -> None:
    with local_cluster(n_workers=1, threads_per_worker=1) as client:
        cluster: Any = client.cluster
        client.register_plugin(Recorder())
        done = client.submit(nap, 0.0, key="done")
        (data,) = client.scatter([b"scattered"], hash=False)
        assert done.result(PATIENCE) == 0.0
        running = client.submit(nap, 600.0, key="running")
        until("running", lambda: client.run_on_scheduler(state_of, key="running") == "processing")
        client.run_on_scheduler(seen)
        (nanny,) = cluster.workers.values()
        os.kill(nanny.process.pid, signal.SIGKILL)  # AsyncProcess.kill() needs an event loop in this thread
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


@tried
def test_a_graph_is_told_before_its_tasks_move_and_a_client_that_leaves_is_named_in_the_stimulus() -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            client.register_plugin(Recorder())
            assert client.submit(nap, 0.0, key="done").result(PATIENCE) == 0.0
            held = client.submit(nap, 0.01, key="held")
            held.result(PATIENCE)
            record = client.run_on_scheduler(seen)
            assert record[0] == ("graph", {"done": "released"})
            assert record[1][:3] == ("released", "waiting", "done")
        with Client(cluster) as client:
            record = client.run_on_scheduler(seen)
            assert [item[3] for item in record if item[1:3] == ("forgotten", "held")] == ["remove"]


@tried
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


@tried
def test_a_key_that_may_run_on_no_worker_waits_until_that_worker_is_there() -> None:
    def held(key: str, dask_scheduler: Scheduler) -> None:
        dask_scheduler.tasks[key].worker_restrictions = {"tcp://127.0.0.1:1"}
        dask_scheduler.transitions({key: "released"}, "pin")

    with local_cluster(n_workers=1, processes=False) as client:
        told.clear()
        future = client.submit(until_told, key="held")
        try:
            until("running", lambda: client.run_on_scheduler(state_of, key="held") == "processing")
            client.run_on_scheduler(held, key="held")
            assert client.run_on_scheduler(state_of, key="held") == "no-worker"
            future.cancel()
        finally:
            told.set()


@tried
def test_a_worker_that_is_asked_again_answers_from_memory_and_takes_the_new_number_of_what_it_runs() -> None:
    state = WorkerState(validate=True)
    state.handle_stimulus(ComputeTaskEvent.dummy("key", run_id=1, stimulus_id="first"))
    assert state.tasks["key"].state == "executing"
    state.handle_stimulus(ComputeTaskEvent.dummy("key", run_id=2, stimulus_id="again"))
    assert (state.tasks["key"].state, state.tasks["key"].run_id) == ("executing", 2)
    state.handle_stimulus(ExecuteSuccessEvent.dummy("key", 42, run_id=2, stimulus_id="done"))
    (answer,) = state.handle_stimulus(ComputeTaskEvent.dummy("key", run_id=3, stimulus_id="once more"))
    assert isinstance(answer, TaskFinishedMsg)
    assert (answer.key, answer.run_id, state.tasks["key"].state) == ("key", 3, "memory")


@tried
def test_names_for_a_worker_that_is_back() -> None:
    register = inspect.getsource(Worker._register_with_scheduler)
    assert "assert not self.data" in register
    assert "assert not self.state.tasks" in register
    assert "self.plugin_add(name=name, plugin=plugin)" in register
    assert list(inspect.signature(Worker.close).parameters) == ["self", "timeout", "executor_wait", "nanny", "reason"]
    assert '"worker-handle-scheduler-connection-broken"' in inspect.getsource(Worker.handle_scheduler)
    assert '"worker-heartbeat-missing"' in inspect.getsource(Worker.heartbeat)
    assert "run_id" in ExecuteFailureEvent.__annotations__
    assert RUN_ID_SENTINEL == -1
    assert DIR_LOCK_EXT == ".dirlock"
    joined = inspect.getsource(Scheduler.add_worker)
    assert joined.index("plugin.add_worker(") < joined.index("bulk_schedule_unrunnable_after_adding_worker")


@pytest.mark.timeout(300)
def test_all_of_this_holds_for_an_older_release(tmp_path: Path) -> None:
    older = RELEASES[-1]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "0", "--no-deps"]
    try:
        subprocess.run([*pip, "--target", tmp_path, f"dask=={older}", f"distributed=={older}"], check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"distributed {older} cannot be had: {error}")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    version = [sys.executable, "-c", "import distributed; print(distributed.__version__)"]
    assert subprocess.run(version, env=env, check=True, capture_output=True, text=True).stdout.strip() == older
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not older", __file__]
    done = subprocess.run(tests, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout

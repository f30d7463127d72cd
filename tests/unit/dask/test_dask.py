"""The parts of the Dask hook that need no cluster: results in the store, fingerprints, settings, shuffles, patience."""

from __future__ import annotations

import functools
import inspect
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import DataNode, List, Task, TaskRef
from distributed import Lock, Reschedule
from distributed.worker_state_machine import ComputeTaskEvent, FreeKeysEvent, WorkerState
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.errors import ImageDamaged, NotFound
from torpor.store import Store
from torpor_dask import Resume, Settings, loading, results
from torpor_dask.fingerprint import fingerprint, means_its_content
from torpor_dask.results import BoundToCluster, NoAnswer, Result, freeze, in_time, look, read, write
from torpor_dask.shuffle import BARRIER, of_shuffle
from torpor_dask.worker import Keep


def result(key: Any, value: Any) -> Result:
    return Result(key, "", 7, 0.5, freeze(value))


KEYS = st.recursive(
    st.text() | st.text().map(str.encode) | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(tuple),
    max_leaves=4,
)
VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.binary(max_size=200_000),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.floats(allow_nan=False)),
    st.integers(0, 300_000).map(np.arange),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, values: dict[Any, Any]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    info = write(store, [result(key, value) for key, value in values.items()], "cluster", "worker")
    kept = look(store, info)
    assert [entry.key for entry in kept] == list(values)
    for entry in kept:
        np.testing.assert_equal(read(store, info.id, entry.row, entry.key), values[entry.key])
    assert store.verify() == []


def test_frames_of_all_sizes_in_one_result(store: Store) -> None:
    frame = pd.DataFrame({"a": np.arange(1_500_000), "b": ["x", "yy", "zzz"] * 500_000, "c": 1.5})
    value = [frame, np.arange(10), {"small": np.ones(20_000), "large": np.random.default_rng(0).random(1_200_000)}]
    info = write(store, [result("key", value)], "cluster", "worker")
    again = read(store, info.id, 0, "key")
    pd.testing.assert_frame_equal(again[0], frame)
    np.testing.assert_equal(again[1:], value[1:])
    again[2]["large"][0] = 5  # as writable as what was computed


def test_small_results_need_no_pack(store: Store) -> None:
    info = write(store, [result(f"key-{number}", number) for number in range(500)], "cluster", "worker")
    assert info.packs == ()
    assert info.size < 100_000


def test_a_row_that_is_not_the_keys_is_refused(store: Store) -> None:
    info = write(store, [result("a", 1), result("b", 2)], "cluster", "worker")
    with pytest.raises(ImageDamaged, match="does not hold"):
        read(store, info.id, 1, "a")
    with pytest.raises(ImageDamaged, match="does not hold"):
        read(store, info.id, 2, "c")
    with pytest.raises(NotFound):
        read(store, "20260101-000000000-aaaaaa", 0, "a")


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x80", b"\x81\xa7results\x91\x01", pickle.dumps({"results": []}), b"\xff" * 100]
)
def test_a_body_that_is_no_list_of_results_is_refused(store: Store, body: bytes) -> None:
    with store.writer(results.KIND) as writer:
        info = writer.publish(body, "not ours", [results.NEEDS])
    with pytest.raises(ImageDamaged, match="cannot be read"):
        look(store, info)


def test_what_is_bound_to_a_cluster_is_told() -> None:
    for value in (Lock("x"), [1, {"deep": Lock("x")}], np.array([Lock("x")], dtype=object)):
        with pytest.raises(BoundToCluster):
            freeze(value)
    freeze(["distributed", "distributed systems"])


def double(number: int) -> int:
    return 2 * number


def test_fingerprints_tell_tasks_apart() -> None:
    def make(factor: int) -> Any:
        return lambda number, more=3: number * factor + more

    specs = [
        Task("k", double, 1),
        Task("k", double, 2),
        Task("k", double, True),
        Task("k", double, "1"),
        Task("k", double, TaskRef("other")),
        Task("k", double, number=1),
        Task("k", make(2), 1),
        Task("k", make(3), 1),
        Task("k", lambda number: 2 * number, 1),
        Task("k", lambda number: number * 3, 1),
        Task("k", functools.partial(double, 1)),
        Task("k", functools.partial(double, 2)),
        Task("k", double, List([TaskRef("a"), TaskRef("b")])),
        Task("k", double, List([TaskRef("b"), TaskRef("a")])),
        Task("k", double, np.arange(3)),
        Task("k", double, np.arange(4)),
        Task("k", double, {"a": 1, "b": 2}),
        Task("k", double, {"a": 2, "b": 1}),
        DataNode("k", 1),
    ]
    assert len({fingerprint(spec) for spec in specs}) == len(specs)
    for spec in specs:
        assert fingerprint(pickle.loads(cloudpickle.dumps(spec))) == fingerprint(spec)
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint(Task("k", double, loop)) == fingerprint(Task("k", double, loop))


def test_fingerprints_agree_between_processes() -> None:
    script = (
        "from dask._task_spec import Task\n"
        "from torpor_dask.fingerprint import fingerprint\n"
        "def f(x, names={'a', 'b', 'c'}): return x in {'p', 'q', 'r'} and names\n"
        "print(fingerprint(Task('k', f, {'x', 'y', 'z'}, lambda: f)))\n"
    )
    seen = {
        subprocess.run([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, stdout=-1, check=True).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_keys_that_mean_their_content() -> None:
    token = "0123456789abcdef" * 2
    meaning: list[Any] = [f"sum-{token}", (f"array-{token}", 0, 1), "f-2b6b1d22-0a1e-4d7c-8f4e-0123456789ab"]
    others: list[Any] = ["x", ("mine", 0), b"x", 1, ()]
    assert all(map(means_its_content, meaning)) and not any(map(means_its_content, others))


def test_tasks_of_a_shuffle_are_told_however_fused() -> None:
    def transfer(data: Any, shuffle: str) -> int:
        return 1

    inner = Task("inner", transfer, TaskRef("x"), "abc")
    fused = Task.fuse(inner, Task("outer", double, TaskRef("inner")))
    assert of_shuffle(fused, ["outer"], {BARRIER + "abc"})
    assert not of_shuffle(fused, ["outer"], {BARRIER + "other"})
    assert of_shuffle(Task("k", double, 1), ["k", BARRIER + "abc"], ())
    transfer.__module__ = "distributed.shuffle._rechunk"
    assert of_shuffle(fused, ["outer"], ())
    assert not of_shuffle(None, ["k"], ())


def test_a_store_that_hangs_ends_the_wait_and_not_the_computation(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(loading, "read", lambda *_: go_on.wait())
    with pytest.raises(Reschedule):
        loading.load(store.path, "x", 0, "k", 0.2)
    with pytest.raises(Reschedule):  # the next does not wait for long
        loading.load(store.path, "x", 0, "k", 3600.0)
    with pytest.raises(NoAnswer):
        in_time(0.05, "waiting", go_on.wait)
    go_on.set()
    assert in_time(5, "adding", lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(KeyError):
        in_time(5, "failing", {}.__getitem__, 1)


class FakeWorker:
    """As much of a worker as taking a task needs, around Dask's own state machine."""

    def __init__(self) -> None:
        self.state = WorkerState(address="tcp://here:1", validate=True)

    def compute(self, **msg: Any) -> None:
        self.state.handle_stimulus(ComputeTaskEvent(**msg))


def test_a_worker_does_not_wait_for_the_inputs_of_what_it_loads() -> None:
    worker: Any = FakeWorker()
    plugin = Keep(Settings.read(), "cluster")
    plugin.worker, plugin._compute = worker, worker.compute
    there = ["tcp://there:1"]
    for event in (
        ComputeTaskEvent.dummy("key", who_has={"input": there}, stimulus_id="given"),
        ComputeTaskEvent.dummy("after", who_has={"key": there}, stimulus_id="names the key"),
        FreeKeysEvent(keys=["key"], stimulus_id="taken back"),
    ):
        worker.state.handle_stimulus(event)
    task = worker.state.tasks["key"]
    assert (task.state, [needed.key for needed in task.dependencies]) == ("released", ["input"])  # it remembers
    again = ComputeTaskEvent.dummy("key", stimulus_id="to be loaded")
    fields = {name: getattr(again, name) for name in inspect.signature(ComputeTaskEvent).parameters}
    fields["run_spec"] = loading.loading_task(results.Kept("key", "", 1, 0.5, 9, "snapshot", 0), "/store", 1.0)
    plugin._compute_task(**fields)
    assert task.state == "executing"


def test_a_copy_of_what_a_worker_is_about_to_load_is_no_news() -> None:
    told: list[dict[str, Any]] = []
    hook = Resume(store="/nowhere")
    vars(hook)["_add_keys"] = lambda **message: told.append(message)
    vars(hook)["loading"] = {"x": SimpleNamespace(task=SimpleNamespace(processing_on=SimpleNamespace(address="a")))}
    hook._learn_of_copies("a", ["x", "y"], stimulus_id="1")
    hook._learn_of_copies("b", ["x"], stimulus_id="2")
    assert told == [
        {"worker": "a", "keys": ["y"], "stimulus_id": "1"},
        {"worker": "b", "keys": ["x"], "stimulus_id": "2"},
    ]

"""On a scheduler without workers: which stored results are taken, and that a task gets its own inputs back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.dask.real_scheduler import kept, running, task
from torpor.store import Store
from torpor_dask import scheduler as module
from torpor_dask.fingerprint import fingerprint
from torpor_dask.loading import load
from torpor_dask.results import KIND, NEEDS, Result, freeze, write
from torpor_dask.scheduler import ATTEMPTS, ORIGIN
from torpor_dask.worker import NAME

TOKEN = "0123456789abcdef" * 2


def reported(snapshot: str, *rows: tuple[Any, ...]) -> dict[str, Any]:
    """What a worker says that it has stored."""
    return {"action": "kept", "snapshot": snapshot, "written": 100, "results": rows}


def test_only_the_result_of_the_latest_execution_is_taken(store: Store) -> None:
    async def taken() -> None:
        async with running(store) as hook:
            one = task(hook, "one", run_id=7)
            hook.log_event(NAME, reported("s1", ("one", "", 6, 0.5, 10), ("gone", "", 7, 0.5, 10)))
            assert (hook.kept, hook._garbage) == ({}, ["s1"]), "nothing of it is of use"
            hook.log_event(NAME, reported("s2", ("one", "", 7, 0.5, 10)))
            assert hook.kept["one"].snapshot == "s2" and hook.usable(one, set()) is hook.kept["one"]
            one.run_id = 8
            assert hook.usable(one, set()) is None, "it was computed again since"
            one.run_id, one.actor = 7, True
            assert hook.usable(one, set()) is None
            hook.log_event(NAME, {"action": "failed", "count": 2, "error": "the disk is full"})
            counters = hook.counters
            assert (counters.failed, counters.unkept, counters.error) == (2, 2, "the disk is full")
            hook.log_event(NAME, {"action": "unkept", "count": 1})
            hook.log_event(NAME, reported("s3", ("one", "", 7, 0.5, 10)))
            assert (counters.unkept, counters.error, hook._garbage) == (3, "", ["s1", "s2"])

    asyncio.run(taken())


def test_what_an_earlier_cluster_stored_must_be_this_very_task(store: Store) -> None:
    async def taken() -> None:
        async with running(store) as hook:
            mine, other = task(hook, f"double-{TOKEN}"), task(hook, "named by hand")
            for one in (mine, other):
                assert one.run_spec is not None
                hook._earlier[one.key] = kept(str(one.key), token=fingerprint(one.run_spec))
            assert hook.usable(mine, set()) is hook._earlier[mine.key]
            assert hook.usable(other, set()) is None, "such a name may mean anything"
            mine.add_dependency(other)
            assert hook.usable(mine, set()) is None, "and so may what comes of it"
            mine.dependencies.clear()
            hook._earlier[mine.key].token = "another"
            assert hook.usable(mine, set()) is None

    asyncio.run(taken())


def test_a_task_that_is_loaded_needs_no_inputs_and_gets_them_back(store: Store) -> None:
    async def loaded() -> None:
        async with running(store) as hook:
            needed = task(hook, "input")
            one = task(hook, "one", needed)
            own = one.run_spec
            hook.kept["one"] = kept("one")
            hook.cover([one])
            assert list(hook.loading) == ["one"] and one.run_spec is not own
            assert one.run_spec.func is load  # type: ignore[union-attr]
            origin = hook.scheduler.tasks[ORIGIN, "one"]
            assert (one.dependencies, needed.dependents, origin.dependencies) == (set(), {origin}, {needed})
            hook._restore("one", "test")
            assert (one.run_spec, one.dependencies, needed.dependents) == (own, {needed}, {one})
            assert (ORIGIN, "one") not in hook.scheduler.tasks

    asyncio.run(loaded())


def test_what_cannot_be_loaded_is_sought_among_its_inputs(store: Store) -> None:
    async def covered() -> None:
        async with running(store) as hook:
            first = task(hook, "first")
            last = task(hook, "last", task(hook, "middle", first))
            hook.kept["first"] = kept("first")
            hook.cover([last])
            assert list(hook.loading) == ["first"]

    asyncio.run(covered())


def test_a_result_that_no_worker_can_load_is_computed(store: Store) -> None:
    async def tried() -> None:
        async with running(store) as hook:
            one = task(hook, "one")
            own = one.run_spec
            hook.kept["one"] = kept("one")
            hook.cover([one])
            for attempt in range(ATTEMPTS):
                assert hook.loading["one"].attempts == attempt
                hook._on_load_ended("one", "a worker is gone")
            assert ("one" in hook.loading, one.run_spec, hook.counters.unreadable) == (False, own, 1)
            assert hook.kept == {}
            hook.kept["one"] = kept("one")
            hook.cover([one])
            hook._on_load_ended("one", "reschedule-1")
            assert "one" not in hook.loading, "the worker said itself that it cannot"

    asyncio.run(tried())


def test_results_that_nobody_needs_are_removed_from_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP", 0.01)

    async def swept() -> None:
        async with running(store) as hook:
            one = task(hook, "one")
            needless = write(store, [Result("one", "", 6, 0.5, freeze(1))], "c", "w")
            needed = write(store, [Result("one", "", 7, 0.5, freeze(2))], "c", "w")
            for info, run_id in ((needless, 6), (needed, 7)):
                hook.log_event(NAME, reported(info.id, (one.key, "", run_id, 0.5, 10)))
            while needless.id in store.ids():
                await asyncio.sleep(0.01)
            assert store.ids() == [needed.id]

    asyncio.run(asyncio.wait_for(swept(), 60))


def test_results_of_earlier_clusters_are_found_and_others_snapshots_are_not_taken_for_such(store: Store) -> None:
    write(store, [Result("old", "a token", 7, 0.5, freeze(1))], "c", "w")
    with store.writer("tree") as saver:
        saver.publish(b"a kernel", "not ours")
    with store.writer(KIND) as saver:
        saver.publish(b"\xc1", "damaged", [NEEDS])

    async def found() -> None:
        for warm in (True, False):
            async with running(store, warm_start=warm) as hook:
                assert list(hook._earlier) == (["old"] if warm else [])
                assert hook._seen == set(store.ids()), "none of them is taken for a last result"

    asyncio.run(found())


def test_the_last_results_of_a_dead_worker_are_found_in_the_store(store: Store) -> None:
    async def died() -> None:
        async with running(store) as hook:
            task(hook, "one")
            for cluster, worker in ((hook.cluster, "tcp://w"), (hook.cluster, "tcp://other"), ("another", "tcp://w")):
                last = write(store, [Result("one", "", 7, 0.5, freeze(1))], cluster, worker)
                if (cluster, worker) == (hook.cluster, "tcp://w"):
                    mine = last
            hook._learn_last_of("tcp://w")
            assert hook.kept["one"].snapshot == mine.id and len(hook.kept) == 1

    asyncio.run(died())

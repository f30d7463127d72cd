"""Keys of a lost worker wait for its process: for so long, for no copy of it, and for nothing that others can load."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from distributed import Reschedule, Status
from distributed.scheduler import TaskState, WorkerState

from tests.unit.dask.real_scheduler import kept, running, task
from torpor.store import Store
from torpor_dask import Resume
from torpor_dask.holding import Holding, hand_back, held_task, is_held

OLD, NEW = "tcp://10.0.0.1:1", "tcp://10.0.0.2:2"


def lost(hook: Resume, *tasks: TaskState, expected: bool = False) -> tuple[Holding, list[TaskState]]:
    """What need not be held of a worker that is lost with results."""
    assert hook.holding
    rest = hook.holding.begin({"worker": OLD, "expected": expected, "processing-tasks": []}, tasks)
    held = [one.key for one in tasks if one.key in hook.loading]
    hook.scheduler.transitions(dict.fromkeys(held, "waiting"), "as Dask does now")
    return hook.holding, rest


async def back(hook: Resume, *has: tuple[str, int], returns: int = 0, **other: Any) -> dict[str, Any]:
    assert hook.holding
    asked: dict[str, Any] = {
        "cluster": hook.cluster,
        "process": "p",
        "returns": returns,
        "old": OLD,
        "new": NEW,
        "has": list(has),
    }
    return await hook.holding.rejoin(**asked | other)


def test_a_held_task_gives_its_key_back() -> None:
    assert is_held(held_task("key")) and not is_held(None)
    with pytest.raises(Reschedule, match="'key' was held"):
        hand_back("key")


def test_keys_wait_for_their_worker_and_it_keeps_what_it_has(store: Store) -> None:
    async def waited() -> None:
        async with running(store, hold="1 hour") as hook:
            one, two = task(hook, "one", run_id=7), task(hook, "two", run_id=8)
            own = one.run_spec
            _, rest = lost(hook, one, two)
            assert rest == [] and list(hook.loading) == ["one", "two"]
            assert one.state == "no-worker" and one.worker_restrictions == {OLD} and is_held(one.run_spec)
            answer = await back(hook, ("one", 7), ("two", 6), ("three", 1))
            assert answer == {"answer": "welcome", "keep": ["one"]}, "two was computed again since"
            assert one.worker_restrictions == {NEW}
            assert await back(hook) == {"answer": "refused"}, "a second copy of the process"
            assert (await back(hook, returns=1))["answer"] == "welcome"
            hook._restore("one", "test")
            assert one.run_spec is own and not one.worker_restrictions

    asyncio.run(waited())


def test_who_is_not_the_lost_worker_is_not_let_in(store: Store) -> None:
    async def asked() -> None:
        async with running(store, hold="1 hour") as hook:
            assert (await back(hook, cluster="another"))["answer"] == "refused"
            hook.scheduler.workers[OLD] = None  # type: ignore[assignment]
            assert (await back(hook))["answer"] == "later", "its connection is not closed yet"
            del hook.scheduler.workers[OLD]
            assert await back(hook) == {"answer": "welcome", "keep": []}

    asyncio.run(asked())


def test_when_the_time_is_over_the_keys_are_dasks_again(store: Store) -> None:
    async def over() -> None:
        async with running(store, hold="1 hour") as hook:
            one = task(hook, "one")
            own = one.run_spec
            holding, _ = lost(hook, one)
            holding._end(hook.loading["one"].held.hold)  # type: ignore[union-attr]
            assert (hook.loading, one.run_spec, one.worker_restrictions) == ({}, own, None)
            assert await back(hook, ("one", 7)) == {"answer": "welcome", "keep": []}

    asyncio.run(over())


def test_a_worker_that_was_to_go_is_not_waited_for(store: Store) -> None:
    async def retired() -> None:
        async with running(store, hold="1 hour") as hook:
            one = task(hook, "one")
            assert lost(hook, one, expected=True)[1] == [one]
            assert hook.loading == {}

    asyncio.run(retired())


def test_what_others_can_load_and_what_cannot_be_held_is_not_waited_for(store: Store) -> None:
    async def loaded() -> None:
        async with running(store, hold="1 hour") as hook:
            stored, actor, scattered = task(hook, "stored"), task(hook, "actor"), task(hook, "scattered")
            hook.kept["stored"] = kept("stored")
            hook.scheduler.running.add(None)  # type: ignore[arg-type]
            actor.actor, scattered.run_spec = True, None
            assert hook.holding
            rest = hook.holding.begin(
                {"worker": OLD, "expected": False, "processing-tasks": []}, [stored, actor, scattered]
            )
            assert rest == [stored, actor, scattered] and hook.loading == {}
            hook.scheduler.running.clear()
            assert lost(hook, stored)[1] == [], "while nobody is there to load it"

    asyncio.run(loaded())


def test_a_new_process_under_the_name_of_a_lost_worker_ends_the_wait(store: Store) -> None:
    """A job that begins anew, instead of being woken, takes the name that dask-jobqueue has given it."""

    async def anew() -> None:
        async with running(store, hold="1 hour") as hook:
            one, two = task(hook, "one"), task(hook, "two")
            assert hook.holding
            hook.holding.on_registered(OLD, "cluster-0")
            hook.holding.on_registered("tcp://10.0.0.3:3", "cluster-1")
            lost(hook, one)
            hook.holding.on_registered("tcp://10.0.0.4:4", "cluster-2")
            assert list(hook.loading) == ["one"]
            hook.holding.on_registered(NEW, "cluster-0")
            assert (hook.loading, one.worker_restrictions) == ({}, None)
            lost(hook, two)
            await back(hook, ("two", 7))
            hook.holding.on_registered(NEW, "cluster-0")
            assert list(hook.loading) == ["two"], "the worker itself is back"

    asyncio.run(anew())


def test_what_a_lost_worker_has_begun_since_its_last_heartbeat_waits_for_it(store: Store) -> None:
    async def begun() -> None:
        async with running(store, hold="1 hour") as hook:
            worker = WorkerState(
                address=OLD, status=Status.running, pid=1, name="w", nthreads=2, memory_limit=0, local_directory="",
                nanny="", server_id="w", services={}, versions={}, extra={}, scheduler=hook.scheduler,
            )  # fmt: skip
            tasks = [task(hook, f"task {number}") for number in range(6)]
            remote = task(hook, "input")
            for number, one in enumerate(tasks):
                one.state, one.priority, one.processing_on = "processing", (number,), worker
            tasks[1].add_dependency(remote)
            worker.needs_what[remote] = 1
            worker.executing[tasks[4]] = 1.0
            assert hook.holding
            ran = hook.holding._may_have_run(reversed(tasks))
            assert ran == {tasks[0], tasks[2], tasks[4]}, "1 waits for its input, and two run at once"

    asyncio.run(begun())

"""Dask's own scheduler with the plugin, and no worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dask._task_spec import Task
from distributed import Scheduler
from distributed.scheduler import TaskState

from torpor.store import Store
from torpor_dask import Resume
from torpor_dask.results import Kept


def double(number: int) -> int:
    return 2 * number


@asynccontextmanager
async def running(store: Store, **settings: Any) -> AsyncIterator[Resume]:
    """A plugin at its scheduler."""
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", dashboard=False) as scheduler:
        hook = Resume(store=store.path, **settings)
        await hook.start(scheduler)
        try:
            yield hook
        finally:
            await hook.close()


def task(hook: Resume, key: str, *inputs: TaskState, run_id: int = 7) -> TaskState:
    """A task that is released, with a result once computed in execution `run_id`."""
    made = hook.scheduler.new_task(key, Task(key, double, 1), "released")
    made.priority, made.run_id = (0, 0, 0), run_id
    for needed in inputs:
        made.add_dependency(needed)
    return made


def kept(key: str, run_id: int = 7, snapshot: str = "20260101-000000000-aaaaaa", token: str = "") -> Kept:
    return Kept(key, token, run_id, 0.5, 1000, snapshot, 0)

"""What tests have a Dask cluster do: tasks that count themselves, and looks at the state of its processes.

Scheduler and workers import this module, each anew, and so nothing here may take long to import.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from distributed import Future, Scheduler, Worker, get_worker, worker_client

# what tasks do: each appends a line to the log when its body has ended


def ran(log: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        key = get_worker().get_current_task()
    except ValueError:  # without a cluster
        key = "?"
    os.write(fd, f"{key}\n".encode())
    os.close(fd)


def leaf(number: int, log: str, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    ran(log)
    return number


def add(left: int, right: int, log: str, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    ran(log)
    return left + right


def array(number: int, size: int, log: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    time.sleep(0.05)
    ran(log)
    return np.random.default_rng(number).random(size)


def total(log: str, *arrays: np.ndarray[Any, Any]) -> float:
    time.sleep(0.05)
    ran(log)
    return float(sum(part.sum() for part in arrays))


class Tally:
    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> int:
        self.count += 1
        return self.count


def with_a_future(number: int, log: str) -> list[Future[int]]:
    time.sleep(0.05)
    with worker_client() as client:
        inner = client.submit(leaf, number, log)
        client.gather(inner)
    return [inner]


def chunk_of(frame: Any, log: str) -> Any:
    time.sleep(0.1)
    ran(log)
    return frame


def slow(block: Any, log: str) -> Any:
    time.sleep(0.05)
    ran(log)
    return block * 2


def patient(log: str, go: str, add_to: int = 0) -> int:
    """A task that is under way until a file exists, and tells of its begin and of its end."""
    ran(log)
    while not os.path.exists(go):
        time.sleep(0.02)
    ran(log)
    return 42 + add_to


# what is looked at


def counters(dask_scheduler: Scheduler) -> dict[str, Any]:
    plugin: Any = dask_scheduler.plugins["torpor"]
    origins = [key for key in dask_scheduler.tasks if isinstance(key, tuple) and key[0] == "torpor-origin"]
    return {**vars(plugin.counters), "loading": len(plugin.loading), "origins": len(origins)}


def under_way(key: str, dask_scheduler: Scheduler) -> bool:
    """Whether the scheduler has heard by heartbeat that a task is being executed."""
    return any(task.key == key for worker in dask_scheduler.workers.values() for task in worker.executing)


def drop_replica(key: str, name: str, dask_scheduler: Scheduler) -> None:
    """Have a worker drop what another has, too, as the active memory manager does."""
    worker = next(one for one in dask_scheduler.workers.values() if one.name == name)
    assert len(dask_scheduler.tasks[key].who_has or ()) > 1
    dask_scheduler.request_remove_replicas(worker.address, [key], stimulus_id="test")


def suspicions(dask_scheduler: Scheduler) -> int:
    return sum(task.suspicious for task in dask_scheduler.tasks.values())


def kept_keys(dask_scheduler: Scheduler) -> set[object]:
    plugin: Any = dask_scheduler.plugins["torpor"]
    return set(plugin.kept)


def states(dask_scheduler: Scheduler) -> dict[Any, tuple[str, Any]]:
    return {key: (task.state, task.worker_restrictions) for key, task in dask_scheduler.tasks.items()}


def seconds(dask_worker: Worker) -> dict[Any, float]:
    """How long each task took."""
    tasks = dask_worker.state.tasks
    return {key: task.startstops[-1]["stop"] - task.startstops[-1]["start"] for key, task in tasks.items()}

"""On every worker: store the results of finished tasks, and close gracefully when a preemption is announced."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from dask.typing import Key
from distributed import Worker, WorkerPlugin
from distributed.core import Status
from distributed.protocol.serialize import ToPickle
from distributed.worker_state_machine import ExecuteSuccessEvent, StateMachineEvent, TaskState

from torpor.errors import TorporError
from torpor.store import Store
from torpor_dask.fingerprint import fingerprint, means_its_content
from torpor_dask.holding import is_held
from torpor_dask.loading import is_loading
from torpor_dask.rejoin import Rejoin
from torpor_dask.results import BoundToCluster, Result, freeze, write
from torpor_dask.settings import Settings
from torpor_dask.shuffle import of_shuffle

NAME: Final = "torpor"
"""Name of the plugins of scheduler, workers and nannies, and topic of the events that workers report."""
LONGEST_GATHER: Final = 5.0
"""Seconds."""
UNREGISTER_SECONDS: Final = 5.0
"""Seconds that a closing worker has to unregister from the scheduler."""
REST: Final = 10.0
"""Seconds during which nothing is written to a store that has failed."""

logger = logging.getLogger("torpor.dask")


@dataclass
class Finished:
    """A result that waits to be stored."""

    key: Key
    value: Any
    spec: Any
    run_id: int
    size: int
    seconds: float
    stored: Future[bool] = field(default_factory=Future)


class Writer:
    """The thread that writes results in the background. Results of a short time become one snapshot."""

    def __init__(self, settings: Settings, cluster: str, worker: str, report: Callable[[dict[str, Any]], None]) -> None:
        """Start the thread. It calls `report` with messages for the scheduler."""
        self.settings = settings
        self.speed = 0.0
        """Bytes per second of the latest writes; 0: not known yet."""
        self._store = Store(settings.store)
        self.worker = worker
        """Its address, by which the scheduler finds what it stored last."""
        self._cluster, self._report = cluster, report
        self._waiting: deque[Finished] = deque()
        self._size = 0  # of what waits and of what is being written, bytes
        self._unfinished = 0
        self._snapshots = 0
        self._resting_until = 0.0
        self._hurry = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="torpor-writer", daemon=True)
        self._thread.start()

    def put(self, finished: Finished) -> bool:
        """Queue a result. Return False if the queue is full, or if the store has failed a moment ago."""
        with self._changed:
            if (
                self._closed
                or self._size + finished.size > self.settings.queue
                or time.monotonic() < self._resting_until
            ):
                return False
            self._waiting.append(finished)
            self._size += finished.size
            self._unfinished += 1
            self._changed.notify_all()
            return True

    def flush(self, seconds: float) -> bool:
        """Write all queued results at once; tell whether that was done within `seconds`."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._unfinished, seconds)
            self._hurry = False
            return done

    def close(self) -> None:
        """Accept no more results. The thread ends when it has written the queued ones."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._gather():
            try:
                self._write(batch)
            except Exception as error:  # if this thread ended, no more results would be stored, without any message
                logger.exception("results of %d tasks are not kept", len(batch))
                self._report({"action": "failed", "count": len(batch), "error": str(error)})
            for finished in batch:
                if not finished.stored.done():
                    finished.stored.set_result(False)
            with self._changed:
                self._unfinished -= len(batch)
                self._size -= sum(finished.size for finished in batch)
                self._changed.notify_all()

    def _gather(self) -> list[Finished]:
        """Wait for results, and a moment longer, to store several in one snapshot. Empty if the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            # Every snapshot makes listing the store slower. After 100 of them a worker makes half as many, and so on.
            moment = min(self.settings.gather * (1 + self._snapshots / 100), LONGEST_GATHER)
            if not self.settings.write_through:
                self._changed.wait_for(
                    lambda: self._hurry or self._closed or self._size > self.settings.queue / 4, moment
                )
            batch = list(self._waiting)
            self._waiting.clear()
            return batch

    def _write(self, batch: list[Finished]) -> None:
        results: list[tuple[Finished, Result]] = []
        for finished in batch:
            try:
                results.append((finished, self._freeze(finished)))
            except BoundToCluster:
                logger.debug("%r is bound to its cluster and not kept", finished.key)
            except Exception as error:  # what a user's class raises when it is pickled can be anything
                logger.warning("the result of %r is not kept: %s", finished.key, error)
        if len(results) < len(batch):
            self._report({"action": "unkept", "count": len(batch) - len(results)})
        if not results:
            return
        begun = time.monotonic()
        try:
            info = write(self._store, [result for _, result in results], self._cluster, self.worker)
        except TorporError as error:
            with self._changed:
                self._resting_until = time.monotonic() + REST
            logger.warning("results of %d tasks are not kept: %s", len(results), error)
            self._report({"action": "failed", "count": len(results), "error": str(error)})
            return
        took = time.monotonic() - begun
        self._snapshots += 1
        if info.size > 1 << 20:  # the time of a small one is that of the syncs
            self.speed = (self.speed + info.size / took) / 2 if self.speed else info.size / took
        rows = [[result.key, result.token, result.run_id, result.seconds, result.size] for _, result in results]
        self._report({"action": "kept", "snapshot": info.id, "results": rows, "written": info.written})
        for finished, _ in results:
            finished.stored.set_result(True)

    def _freeze(self, finished: Finished) -> Result:
        token = ""
        if self.settings.warm_start and finished.spec is not None and means_its_content(finished.key):
            token = fingerprint(finished.spec)
        return Result(finished.key, token, finished.run_id, finished.seconds, freeze(finished.value))


class Keep(WorkerPlugin):
    """Chooses the results to be stored, and handles the warning of a preemption."""

    idempotent = True
    name = NAME
    rejoin: Rejoin | None = None

    def __init__(self, settings: Settings, cluster: str) -> None:
        """Take the id of the scheduler: a tag of the snapshots, by which it recognizes those of its own workers."""
        self.settings = settings
        self.cluster = cluster

    async def setup(self, worker: Worker) -> None:
        """Begin to store results."""
        self.worker = worker
        self._passed_over = 0
        self._loop = asyncio.get_running_loop()
        self._leaving = False
        self.writer = Writer(self.settings, self.cluster, worker.address, self._report)
        self._compute = worker.stream_handlers["compute-task"]
        worker.stream_handlers["compute-task"] = self._compute_task
        self.rejoin = Rejoin(worker, self.cluster, self._moved) if self.settings.hold else None
        if self.settings.write_through:
            # Replace the method by an instance attribute: the scheduler learns of a result only when this returns.
            self._execute = worker.execute
            worker.execute = self._execute_and_store  # type: ignore[method-assign]
        if self.settings.warning is not None and threading.current_thread() is threading.main_thread():
            signal.signal(self.settings.warning, self._on_warning)

    async def teardown(self, worker: Worker) -> None:
        """Store all queued results; if the worker closes, unregister it gracefully."""
        worker.stream_handlers["compute-task"] = self._compute
        for name in ("execute", "close"):  # ours go over the worker's methods
            vars(worker).pop(name, None)
        await asyncio.to_thread(self.writer.flush, self.settings.patience)
        self.writer.close()
        if worker.status == Status.closing:
            await self._unregister()

    async def _unregister(self) -> None:
        """Unregister as expected, so that no task counts as suspicious. Other workers load its results."""
        worker = self.worker
        if not worker.batched_stream or worker.batched_stream.closed():
            return  # there is nobody to tell
        try:
            leaving = worker.scheduler.unregister(
                address=worker.address, expected=True, stimulus_id=f"torpor-leaves-{time.time()}"
            )
            await asyncio.wait_for(leaving, UNREGISTER_SECONDS)
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            logger.info("the scheduler was not told that %s leaves: %s", worker.address, error)

    def _moved(self, address: str) -> None:
        self.writer.worker = address

    def _report(self, message: dict[str, Any]) -> None:
        """Send a message to the scheduler, from any thread. Without a connection it is lost; the results are not."""
        try:
            self._loop.call_soon_threadsafe(self.worker.log_event, NAME, message)
        except RuntimeError as error:  # the loop is closed: the worker is gone
            logger.info("not reported: %s", error)

    def _compute_task(self, **msg: Any) -> None:
        """Take a task from the scheduler. If it loads a key, remove the inputs of earlier assignments of that key.

        Dask adds the inputs of a task to those of an earlier assignment, and waits for all of them. It would wait for
        ever: nothing computes the former inputs of a key that is loaded.
        """
        spec = msg["run_spec"]
        spec = spec.data if isinstance(spec, ToPickle) else spec
        if self.rejoin:
            self.rejoin.on_compute_task(msg["key"])
        if is_loading(spec) or is_held(spec):
            task = self.worker.state.tasks.get(msg["key"])
            if task is not None and task.state in ("released", "fetch", "flight", "missing", "error"):
                for needed in task.dependencies:
                    needed.dependents.discard(task)
                    needed.waiters.discard(task)
                task.dependencies.clear()
                task.waiting_for_data.clear()
        self._compute(**msg)

    # choosing

    def transition(self, key: Key, start: str, finish: str, **kwargs: Any) -> None:
        """Queue a result that was computed or scattered here, if it should be stored."""
        if finish != "memory" or (self.settings.write_through and start != "released"):
            return
        task = self.worker.state.tasks[key]
        if start == "released":  # scattered: nothing can compute it, so that its size alone decides
            if task.run_spec is None and means_its_content(key):
                self._put(key, None, -1, task.nbytes or 0, 0.0)
        elif start in ("executing", "long-running", "resumed"):
            seconds = task.startstops[-1]["stop"] - task.startstops[-1]["start"] if task.startstops else 0.0
            if self._wanted(task, task.nbytes or 0, seconds):
                self._put(key, task.run_spec, task.run_id, task.nbytes or 0, seconds)

    def _wanted(self, task: TaskState, size: int, seconds: float) -> bool:
        """Whether the result of a task should be kept."""
        said = (task.annotations or {}).get("torpor")
        if said == "never" or not (said == "always" or self.settings.keep_all or self._worth(size, seconds)):
            return False
        if is_loading(task.run_spec) or task.key in self.worker.state.actors:
            return False
        # the scheduler knows more and asks again before it loads
        return not of_shuffle(task.run_spec, (task.key, *(needed.key for needed in task.dependencies)), ())

    def _worth(self, size: int, seconds: float) -> bool:
        """Tell whether keeping a result costs less than computing it once more."""
        if seconds < self.settings.min_duration or size > self.settings.max_size:
            return False
        return not self.writer.speed or size < seconds * self.writer.speed

    def _put(self, key: Key, spec: Any, run_id: int, size: int, seconds: float) -> None:
        # A result that is larger than the worker's memory target was spilled at once: reading it back
        # here would stop the event loop.
        data = self.worker.data
        memory = getattr(data, "fast", data)
        if (
            size > self.settings.max_size
            or key not in memory
            or not self.writer.put(Finished(key, memory[key], spec, run_id, size, seconds))
        ):
            self._pass_over()

    def _pass_over(self) -> None:
        """Count a result that should have been stored and was not. Such results are reported together."""
        if not self._passed_over:
            self._loop.call_later(1, self._tell_passed_over)
        self._passed_over += 1

    def _tell_passed_over(self) -> None:
        self._report({"action": "unkept", "count": self._passed_over})
        self._passed_over = 0

    async def _execute_and_store(self, key: Key, *, stimulus_id: str) -> StateMachineEvent:
        """Execute a task, and store its result before it is reported."""
        event = await self._execute(key, stimulus_id=stimulus_id)
        if isinstance(event, ExecuteSuccessEvent):
            task = self.worker.state.tasks[key]
            seconds = event.stop - event.start
            if self._wanted(task, event.nbytes, seconds):
                finished = Finished(key, event.value, task.run_spec, event.run_id, event.nbytes, seconds)
                if self.writer.put(finished):
                    await asyncio.wait([asyncio.wrap_future(finished.stored)], timeout=self.settings.patience)
                else:
                    self._pass_over()
        return event

    # leaving

    def _on_warning(self, signum: int, frame: object) -> None:
        self._loop.call_soon_threadsafe(self._begin_to_leave)

    def _begin_to_leave(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._departure = asyncio.ensure_future(self.leave())

    async def leave(self) -> None:
        """Accept no new task, wait for the running ones, store all results, and close."""
        worker, state = self.worker, self.worker.state
        logger.info("%s closes: a preemption was announced", worker.address)
        worker.status = Status.closing_gracefully
        deadline = time.monotonic() + self.settings.drain
        while (state.executing or state.long_running) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await worker.close(reason="torpor-preemption", executor_wait=False)

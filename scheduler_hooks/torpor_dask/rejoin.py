"""Experimental, on a worker: a woken worker process comes back to its scheduler with its data and running tasks.

A worker of Dask ends when its connection to the scheduler is lost, and a new worker must be empty. A woken process
finds all its connections reset. It does not end, but asks the scheduler which of its keys are held for it (holding.py),
drops all others, and registers like any worker, under its old name. When the scheduler assigns it a key that it has, it
answers at once. When it is assigned a task that it runs, the task goes on, with the run_id of the new assignment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from dask.typing import Key
from distributed import Worker
from distributed.batched import BatchedSend
from distributed.comm.addressing import get_address_host, get_address_host_port
from distributed.core import Status
from distributed.diskutils import DIR_LOCK_EXT
from distributed.worker_state_machine import FreeKeysEvent, StateMachineEvent, TaskState

from torpor_dask.fingerprint import means_its_content

BROKEN: Final = "worker-handle-scheduler-connection-broken"
"""The reason for which Dask closes a worker whose connection is lost."""
UNKNOWN: Final = "worker-heartbeat-missing"
"""The reason for which it closes one that the scheduler does not know."""
SETTLED: Final = 30.0
"""Seconds after which heartbeats from before the worker came back must have been answered."""
UNREACHABLE: Final = 30.0
"""Seconds after which the worker gives up a scheduler that it cannot reach."""
LATER: Final = 120.0
"""Seconds for which the worker asks again while the scheduler has not noticed yet that the old connection is lost."""
PAUSE: Final = 0.2
"""Seconds between two tries."""
logger = logging.getLogger("torpor.dask")


class _AsNew:
    """A worker as Dask registers it: without data, tasks and plugins. All other attributes are the worker's."""

    class _State:
        def __init__(self, state: Any) -> None:
            self._of = state
            self.tasks: dict[Key, Any] = {}

        def __getattr__(self, name: str) -> Any:
            return getattr(self._of, name)

    def __init__(self, worker: Worker) -> None:
        vars(self).update(_of=worker, data={}, state=self._State(worker.state))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of, name, value)

    async def plugin_add(self, **_: Any) -> None:
        """Do nothing: the worker has its plugins already."""

    async def get_metrics(self) -> dict[str, Any]:
        """Give the worker's metrics, without statistics of spans: Dask insists that heartbeats alone carry those."""
        self._drop_spans()
        metrics: dict[str, Any] = await self._of.get_metrics()
        self._drop_spans()
        return metrics

    def _drop_spans(self) -> None:
        if spans := self._of.extensions.get("spans"):
            spans.heartbeat()


class Rejoin:
    """Keeps a worker that has lost its scheduler from ending, if it can come back."""

    def __init__(self, worker: Worker, cluster: str, moved: Callable[[str], None]) -> None:
        """Replace methods of the worker by instance attributes. `moved` gets its address each time it came back."""
        self.worker, self.cluster, self._moved = worker, cluster, moved
        self._returns = 0
        self._under_way: asyncio.Future[bool] | None = None
        self._back_since = -SETTLED
        self._running: dict[Key, asyncio.Event] = {}
        """The tasks that ran when the worker came back, and whether the scheduler has assigned them again since."""
        # By the lock beside it other workers know that a local directory is in use. A frozen process holds no lock: its
        # directory would be purged. Where there is no lock, nobody purges; the worker removes the directory itself.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(worker.local_directory + DIR_LOCK_EXT)
        self._close, worker.close = worker.close, self.close  # type: ignore[method-assign]
        self._execute, worker.execute = worker.execute, self.execute  # type: ignore[method-assign]
        self._remove_replicas = worker.stream_handlers["remove-replicas"]
        worker.stream_handlers["remove-replicas"] = self.remove_replicas

    async def close(
        self, timeout: float = 30, executor_wait: bool = True, nanny: bool = True, reason: str = "worker-close"
    ) -> str | None:
        """Close the worker, unless it can come back."""
        if reason in (BROKEN, UNKNOWN) and self.worker.status in (Status.running, Status.paused):
            if reason == UNKNOWN and time.monotonic() - self._back_since < SETTLED:
                return None  # the answer to a heartbeat from before
            if self._under_way is None:
                self._under_way = asyncio.ensure_future(self._come_back())
            if await asyncio.shield(self._under_way):
                return None
        if self._under_way:
            self._under_way.cancel()  # the worker is closed for another reason
        return await self._close(timeout, executor_wait, nanny, reason)

    def on_compute_task(self, key: Key) -> None:
        """Note that the scheduler has assigned a key."""
        if event := self._running.get(key):
            event.set()

    def remove_replicas(self, keys: Iterable[Key], **message: Any) -> None:
        """Drop superfluous replicas, except the inputs of tasks that ran when the worker came back.

        The scheduler does not know that the worker needs those. Dask's worker would close at such a request. When the
        task has ended, its inputs are announced to the scheduler.
        """
        tasks = self.worker.state.tasks
        needed = {other.key for key in self._running for other in tasks[key].dependencies}
        self._remove_replicas(keys=[key for key in keys if key not in needed], **message)

    async def execute(self, key: Key, *, stimulus_id: str) -> StateMachineEvent:
        """Execute a task. If the worker was frozen meanwhile, its result gets the run_id of the new assignment."""
        event = await self._execute(key, stimulus_id=stimulus_id)
        if asked := self._running.get(key):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asked.wait(), UNREACHABLE)
            del self._running[key]
            task = self.worker.state.tasks[key]
            if hasattr(event, "run_id"):
                event.run_id = task.run_id
            # No running task needs its inputs any more: announce them, and the scheduler decides about them.
            asyncio.get_running_loop().call_soon(self._announce, [needed.key for needed in task.dependencies])
        return event

    async def _come_back(self) -> bool:
        try:
            await self._rejoin()
        except (Exception, asyncio.CancelledError) as error:  # any error: the worker then ends, as without Torpor
            logger.warning("%s cannot come back to its scheduler: %s", self.worker.address, error)
            return False
        finally:
            self._under_way = None
        return True

    async def _rejoin(self) -> None:
        worker = self.worker
        worker.periodic_callbacks["heartbeat"].stop()
        os.makedirs(worker.local_directory, exist_ok=True)  # to spill to; on another node it may not be there
        old = worker.contact_address or worker.address
        new = self._look_at_address(old)
        kept = await self._ask(old, new)
        tasks = worker.state.tasks
        self._running = {key: asyncio.Event() for key in kept if tasks[key].state != "memory"}
        needed = {other.key for key in self._running for other in tasks[key].dependencies}
        known = {key for key, task in tasks.items() if self._at_hand(task) and means_its_content(key)}
        freed = [key for key in tasks if key not in kept | needed | known]
        worker.handle_stimulus(FreeKeysEvent(keys=freed, stimulus_id=f"torpor-rejoin-{time.time()}"))
        worker.batched_stream.abort()
        worker.batched_stream = BatchedSend(interval="2ms", loop=worker.loop)
        worker.contact_address = new
        register: Any = Worker._register_with_scheduler
        await asyncio.wait_for(register(_AsNew(worker)), UNREACHABLE)
        self._announce(known - kept - needed)
        self._back_since = time.monotonic()
        self._moved(worker.address)
        logger.info("%s is back at its scheduler with %d keys", new, len(kept))

    def _at_hand(self, task: TaskState) -> bool:
        """Tell whether a result is in memory. Spilled results are on the node where the process was frozen."""
        data = self.worker.data
        return task.state == "memory" and task.key in getattr(data, "fast", data)

    def _has(self) -> list[tuple[Key, int]]:
        """List the keys and run_ids of what the worker has, runs, or can run without data of other workers."""
        return [
            (key, task.run_id)
            for key, task in self.worker.state.tasks.items()
            if task.state == "executing"
            or self._at_hand(task)
            or (task.state in ("ready", "constrained") and all(map(self._at_hand, task.dependencies)))
        ]

    async def _ask(self, old: str, new: str) -> set[Key]:
        """Ask the scheduler to let the worker come back; give the held keys. Raises OSError, PermissionError."""
        until = time.monotonic() + UNREACHABLE
        longest = time.monotonic() + LATER
        while True:
            try:
                reply = await self.worker.scheduler.torpor_rejoin(
                    cluster=self.cluster,
                    process=self.worker.id,
                    returns=self._returns,
                    old=old,
                    new=new,
                    has=self._has(),
                )
            except OSError:
                if time.monotonic() > until:
                    raise
            else:
                until = time.monotonic() + UNREACHABLE
                if reply["answer"] == "welcome":
                    self._returns += 1
                    return {key for key, _ in self._has()} & set(reply["keep"])  # something may have failed since
                if reply["answer"] != "later" or time.monotonic() > longest:
                    raise PermissionError(f"the scheduler's answer is: {reply['answer']}")
            await asyncio.sleep(PAUSE)

    def _look_at_address(self, old: str) -> str:
        """Give the worker's address on this host, which may not be the one on which the process was frozen."""
        worker = self.worker
        if old != worker.address:
            return old  # the user's own (--contact-address)
        family = socket.AF_INET6 if ":" in get_address_host(worker.scheduler.address) else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(get_address_host_port(worker.scheduler.address))  # sends nothing
            host = way.getsockname()[0]
        listener: Any = worker.listener
        listener.default_host = host  # counts when it listens on all interfaces
        worker._address = None
        worker.ip = get_address_host(worker.address)
        worker.state.address = worker.address
        return worker.address

    def _announce(self, keys: Iterable[Key]) -> None:
        """Tell the scheduler of replicas. It answers with those that it does not want."""
        state = self.worker.state
        there = [key for key in keys if key in state.tasks and state.tasks[key].state == "memory"]
        if there:
            self.worker.batched_send({"op": "add-keys", "keys": there, "stimulus_id": f"torpor-rejoin-{time.time()}"})

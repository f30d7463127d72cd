"""Experimental, on the scheduler: keys and running tasks of a lost worker wait for its process to be woken.

A held key gets a task that is restricted to the lost worker's address. When the worker is back under its name, Dask
assigns it that task like any other. The worker answers at once with the result in its memory, or goes on with the task
that it was running (rejoin.py). If it has neither, the task gives the key back, as happens when the time is over. The
key is then loaded or computed like that of any lost worker. All transitions of the scheduler's state are Dask's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from dask._task_spec import GraphNode, Task
from dask.typing import Key
from distributed import Reschedule
from distributed.scheduler import TaskState

from torpor_dask.fingerprint import means_its_content
from torpor_dask.state import HeldTask, Hold, Plugin

ON_ITS_WAY: Final = 60.0
"""Seconds that a worker has to register after it has asked to come back."""

logger = logging.getLogger("torpor.dask")


def hand_back(key: Key) -> None:
    """Run on a worker that has lost a held key. Always raises Reschedule: the key is loaded or computed."""
    raise Reschedule(f"{key!r} was held for a worker that does not have it any more")


def held_task(key: Key) -> Task:
    """Give the task that replaces that of a held key."""
    return Task(key, hand_back, key)


def is_held(spec: GraphNode | None) -> bool:
    """Tell whether a task is one of `held_task`."""
    return isinstance(spec, Task) and spec.func is hand_back


class Holding:
    """The keys that are held for lost workers."""

    def __init__(self, plugin: Plugin, seconds: float) -> None:
        """Hold the keys of workers that are lost from now on, each for `seconds`."""
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.seconds = seconds
        self._holds: dict[str, Hold] = {}
        self._names: dict[str, object] = {}
        """The names of the workers, by address."""
        self._returns: dict[str, int] = {}
        """How often each worker process has come back, by Dask's id of it."""
        self.scheduler.handlers["torpor_rejoin"] = self.rejoin

    # a worker is lost

    def begin(self, msg: dict[str, Any], lost: Iterable[TaskState]) -> list[TaskState]:
        """Hold the keys and running tasks of a lost worker. Give those that need not be held: other workers load them.

        A key whose result is stored is held only while there is no other worker to load it.
        """
        hold = self._holds.get(msg["worker"]) or Hold(msg["worker"], self._names.pop(msg["worker"], None))
        if msg["expected"]:
            self._end(hold)
            return list(lost)
        rest, others = [], bool(self.scheduler.running)
        trusted: set[Key] = set()
        for task in lost:
            loadable = others and self.plugin.usable(task, trusted) is not None
            if loadable or not self._may_be_held(task):
                rest.append(task)
            else:
                self._hold(task, hold, running=False)
        tasks = [self.scheduler.tasks[key] for key in msg["processing-tasks"]]
        ran = self._may_have_run(tasks)
        for task in tasks:
            key = task.key
            if (loading := self.plugin.loading.get(key)) and loading.held:
                loading.held.hold = hold  # it was back, and is lost again
                task.worker_restrictions = {hold.worker}
            elif not loading and task in ran and self._may_be_held(task):
                self._hold(task, hold, running=True)
        if held := self._of(hold):
            self._holds[hold.worker] = hold
            self._wait(hold, self.seconds)
            logger.info("%d keys wait up to %g s for %s to be woken", len(held), self.seconds, hold.worker)
        return rest

    def _may_be_held(self, task: TaskState) -> bool:
        if task.actor or task.key in self.plugin.loading or self.plugin.of_shuffle(task):
            return False
        return task.run_spec is not None or means_its_content(task.key)

    def _may_have_run(self, tasks: Iterable[TaskState]) -> set[TaskState]:
        """Give those of a lost worker's tasks that it may have been running.

        Those are the tasks that it ran at its last heartbeat, and those that it has begun since: the next ones, by
        priority, of those that had all inputs.
        """
        ready = [
            task
            for task in tasks
            if task.state == "processing"
            and (worker := task.processing_on) is not None
            and worker.needs_what.keys().isdisjoint(task.dependencies)
        ]
        ready.sort(key=lambda task: task.priority or ())
        known = [task for task in ready if task.processing_on and task in task.processing_on.executing]
        threads = max((task.processing_on.nthreads for task in ready if task.processing_on), default=0)
        return {*known, *ready[:threads]}

    def _hold(self, task: TaskState, hold: Hold, *, running: bool) -> None:
        restrictions = (task.worker_restrictions, task.host_restrictions, task.loose_restrictions)
        run_id = -1 if task.run_spec is None else task.run_id
        if running:
            task.suspicious -= 1  # Dask counts a task as suspicious if it was running on a worker that died
        self.plugin.replace(task, held_task(task.key), held=HeldTask(hold, run_id, running, restrictions))
        task.worker_restrictions, task.host_restrictions, task.loose_restrictions = {hold.worker}, None, False

    def _of(self, hold: Hold) -> list[Key]:
        return [key for key, loading in self.plugin.loading.items() if loading.held and loading.held.hold is hold]

    # its time is over

    def _wait(self, hold: Hold, seconds: float) -> None:
        if hold.until:
            hold.until.cancel()
        hold.until = asyncio.get_running_loop().call_later(seconds, self._end, hold)

    def _end(self, hold: Hold) -> None:
        """Give all keys that still wait back to Dask."""
        self._holds.pop(hold.worker, None)
        if hold.until:
            hold.until.cancel()
        hold.over = True
        stimulus = f"torpor-hold-over-{time.time()}"
        tasks = [self.scheduler.tasks[key] for key in self._of(hold)]
        waiting = [task.key for task in tasks if task.state == "no-worker"]
        if waiting:
            logger.info("%s was not woken in time: %d keys are loaded or computed", hold.worker, len(waiting))
        self.scheduler.transitions(dict.fromkeys(waiting, "released"), stimulus)
        for task in tasks:
            self._give_back_unwanted(task, stimulus)

    def _give_back_unwanted(self, task: TaskState, stimulus: str) -> None:
        """Give back a held key that no client or task waits for at present."""
        if task.key in self.plugin.loading and task.state == "released":
            self.plugin.give_back(task.key, stimulus)
            if task.run_spec is None or is_held(task.run_spec):  # scattered data: lost, as without Torpor
                self.scheduler.transitions({task.key: "forgotten"}, stimulus)

    def close(self) -> None:
        """Cancel all timers."""
        for hold in self._holds.values():
            if hold.until:
                hold.until.cancel()

    # it is back

    async def rejoin(
        self, cluster: str, process: str, returns: int, old: str, new: str, has: list[tuple[Key, int]]
    ) -> dict[str, Any]:
        """Answer a woken worker that asks to come back: which keys are held for it.

        `process` is Dask's id of the worker process, and `returns` how often it has come back: if two copies are woken
        from one snapshot, the second is refused. `has` lists the keys that it has or runs, each with its run_id.
        """
        if cluster != self.plugin.cluster or returns != self._returns.get(process, 0):
            return {"answer": "refused"}
        if old in self.scheduler.workers:
            # the connection to a node that is gone is not closed yet; or it is alive, and this is a copy of it
            return {"answer": "later"}
        self._returns[process] = returns + 1
        keep: list[Key] = []
        if hold := self._holds.pop(old, None):
            hold.worker = new
            self._holds[new] = hold
            self._wait(hold, ON_ITS_WAY)
            numbers = dict(has)
            for key in self._of(hold):
                loading = self.plugin.loading[key]
                assert loading.held
                loading.task.worker_restrictions = {new}
                # another number: the name was used again for something else since the process was frozen
                number = numbers.get(key)
                same = number == loading.held.run_id or (number == -1 and means_its_content(key))
                if loading.task.state == "no-worker" and same:
                    keep.append(key)
            hold.promised = tuple(keep)
        logger.info("%s is back as %s, with %d held keys", old, new, len(keep))
        return {"answer": "welcome", "keep": keep}

    def on_registered(self, worker: str, name: object) -> None:
        """Tell a worker that is back to drop the keys that were given back to Dask since it asked.

        If another process has the name of a lost worker, that worker's job has begun anew: it will not be woken.
        """
        self._names[worker] = name
        for other in [one for one in self._holds.values() if one.name == name and one.worker != worker]:
            logger.info("a new process is %s now: %s will not be woken", name, other.worker)
            self._end(other)
        if not (hold := self._holds.get(worker)):
            return
        stimulus = f"torpor-rejoin-{time.time()}"
        for key in self._of(hold):
            self._give_back_unwanted(self.scheduler.tasks[key], stimulus)
        held = {key for key in self._of(hold) if self.scheduler.tasks[key].state == "no-worker"}
        if gone := [key for key in hold.promised if key not in held]:
            self.scheduler.worker_send(worker, {"op": "free-keys", "keys": gone, "stimulus_id": stimulus})
        hold.promised = ()

    def on_returned(self, task: TaskState) -> None:
        """Release the inputs of a task whose result is in memory now."""
        self.plugin.counters.returned += 1
        inputs = list(task.dependencies)
        asyncio.get_running_loop().call_soon(self._release, inputs)

    def _release(self, inputs: list[TaskState]) -> None:
        unneeded = [task for task in inputs if task.state == "memory" and not task.waiters and not task.who_wants]
        self.scheduler.transitions({task.key: "released" for task in unneeded}, f"torpor-returned-{time.time()}")

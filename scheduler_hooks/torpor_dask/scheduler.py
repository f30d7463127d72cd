"""On the scheduler: a key that is lost or submitted again is loaded, if its result is stored.

Such a key gets another task, without inputs, that reads the store. An *origin* keeps its own task and inputs: a task
state that is never computed, so that Dask neither computes the inputs nor forgets them. When the result is in memory,
or cannot be read, the key gets its own task and inputs back.

This depends on an order of events in distributed that tests/integration/test_dask_pins.py checks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from dask.typing import Key
from distributed import Scheduler, SchedulerPlugin
from distributed.protocol.pickle import dumps
from distributed.scheduler import TaskState

from torpor.errors import TorporError
from torpor.store import SnapshotInfo, Store
from torpor_dask.fingerprint import fingerprint, means_its_content
from torpor_dask.holding import Holding
from torpor_dask.loading import loading_task
from torpor_dask.nanny import ForwardWarning
from torpor_dask.page import hide, show
from torpor_dask.results import KIND, Kept, in_time, look
from torpor_dask.settings import Settings
from torpor_dask.shuffle import BARRIER, of_shuffle
from torpor_dask.state import Counters, HeldTask, Loading
from torpor_dask.worker import NAME, Keep

ORIGIN: Final = "torpor-origin"
"""The task group of all origins."""
TAIL: Final = 2.0
"""Seconds that the scheduler waits for the store when it looks for the last results of a dead worker."""
SWEEP: Final = 5.0
"""Seconds between two removals of results that are not needed any more."""
REST: Final = 60.0
"""Seconds until it looks there again after the store did not answer."""
ATTEMPTS: Final = 6
"""How many workers may fail to load a key before it is computed instead."""

logger = logging.getLogger("torpor.dask")


class Resume(SchedulerPlugin):
    """Keeps finished results in a store, and loads them when a worker, a node or the whole cluster is lost.

    ``client.register_plugin(Resume(store="/shared/torpor"))``. It also registers the plugins of workers and nannies.
    Every setting of Dask's configuration block ``torpor:`` can be given by name: ``Resume(write_through=True)``.
    """

    idempotent = True
    name = NAME

    def __init__(self, store: str | None = None, **settings: Any) -> None:
        """Take settings. Raises TypeError for an unknown setting, and ValueError for an invalid value."""
        if store is not None:
            settings["store"] = store
        self.settings = Settings.read(**settings)

    async def start(self, scheduler: Scheduler) -> None:
        """Start: register the plugins of the workers, and list what is in the store."""
        if scheduler.plugins.get(NAME, self) is not self:
            return  # several workers that preload bring one each: the first one's is in use
        self.scheduler = scheduler
        self.cluster = scheduler.id
        self.counters = Counters()
        self.store = Store(self.settings.store)
        self.kept: dict[Key, Kept] = {}
        self.loading: dict[Key, Loading] = {}
        self._earlier: dict[Key, Kept] = {}
        self._snapshots: dict[str, set[Key]] = {}
        self._seen: set[str] = set()
        self._garbage: list[str] = []
        self._stop = threading.Event()
        self._not_before = 0.0
        self.holding = Holding(self, self.settings.hold) if self.settings.hold else None
        self._sweeper = threading.Thread(target=self._sweep, name="torpor-sweeper", daemon=True)
        self._sweeper.start()
        scheduler.add_plugin(self, idempotent=True, name=NAME)  # Dask does so only after the waiting that follows
        self._add_keys = scheduler.stream_handlers["add-keys"]
        scheduler.stream_handlers["add-keys"] = self._learn_of_copies
        await asyncio.to_thread(self._learn)
        show(self)
        keep = Keep(self.settings, self.cluster)
        await scheduler.register_worker_plugin(None, dumps(keep), name=NAME, idempotent=True)
        if self.settings.warning is not None:
            forward = ForwardWarning(self.settings.warning)
            await scheduler.register_nanny_plugin(None, dumps(forward), name=NAME, idempotent=True)

    async def close(self) -> None:
        """End, and remove results that are not needed any more."""
        hide(self)
        self.scheduler.stream_handlers["add-keys"] = self._add_keys
        if self.holding:
            self.holding.close()
        self._stop.set()
        await asyncio.to_thread(self._sweeper.join, SWEEP)

    # what is in the store

    def _learn(self) -> None:
        """List the results of earlier clusters. If that fails, the scheduler starts without them."""
        try:
            for info in in_time(self.settings.patience, "cannot list the store", self.store.snapshots):
                self._seen.add(info.id)
                if self.settings.warm_start and info.kind == KIND and not info.damage:
                    self._learn_one(info)
        except TorporError as error:
            self._note(str(error))

    def _learn_one(self, info: SnapshotInfo) -> None:
        try:
            for kept in in_time(self.settings.patience, f"cannot read snapshot {info.id}", look, self.store, info):
                if kept.token:
                    self._earlier[kept.key] = kept
        except TorporError as error:
            logger.warning("%s", error)

    def _learn_last_of(self, worker: str) -> None:
        """Note the results that a worker stored just before it died, and could not report."""
        if time.monotonic() < self._not_before:
            return
        try:
            for snapshot, results in in_time(TAIL, "cannot look for last results", self._read_last_of, worker):
                self._take(snapshot, results)
        except TorporError as error:
            self._not_before = time.monotonic() + REST
            self._note(str(error))

    def _read_last_of(self, worker: str) -> list[tuple[str, list[Kept]]]:
        fresh = set(self.store.ids()) - self._seen
        return [
            (info.id, look(self.store, info))
            for info in (self.store.snapshots(fresh) if fresh else ())
            if info.kind == KIND and info.tags.get("worker") == worker and info.tags.get("cluster") == self.cluster
        ]

    def _take(self, snapshot: str, results: Iterable[Kept]) -> None:
        """Note the results that a worker of this cluster stored, if they are of the latest execution of their tasks."""
        if snapshot in self._seen:
            return
        self._seen.add(snapshot)
        keys = self._snapshots.setdefault(snapshot, set())
        for kept in results:
            task = self.scheduler.tasks.get(kept.key)
            if task is None or _run_id(task) != kept.run_id:
                continue  # forgotten, or computed again since
            self._drop(kept.key)
            self.kept[kept.key] = kept
            keys.add(kept.key)
            self.counters.kept += 1
        if not keys:
            self._discard(snapshot)

    def _drop(self, key: Key) -> None:
        """Forget a stored result that is not needed any more."""
        kept = self.kept.pop(key, None)
        if kept is None or kept.snapshot not in self._snapshots:
            return
        keys = self._snapshots[kept.snapshot]
        keys.discard(key)
        if not keys:
            self._discard(kept.snapshot)

    def _discard(self, snapshot: str) -> None:
        del self._snapshots[snapshot]
        self._garbage.append(snapshot)

    def _sweep(self) -> None:
        """Remove snapshots that are not needed any more, in a thread, since a store may be slow."""
        ended = False
        while not ended:
            ended = self._stop.wait(SWEEP)
            if not self._garbage:
                continue
            garbage, self._garbage = self._garbage, []
            try:
                self.store.discard([SnapshotInfo(snapshot, self.store.path) for snapshot in garbage])
            except TorporError as error:
                logger.warning("results that are not needed any more cannot be removed from the store: %s", error)

    def _note(self, error: str) -> None:
        logger.warning("%s", error)
        self.counters.error, self.counters.error_at = error, time.time()

    # what happens

    def log_event(self, topic: str, msg: Any) -> None:
        """Handle the loss of a worker, before its keys are rescheduled, and what workers report."""
        if not isinstance(msg, dict):
            return
        if topic == "all" and msg.get("action") == "remove-worker":
            self._on_lost_worker(msg)
        elif topic == NAME:
            self._on_report(msg)

    def _on_report(self, msg: dict[str, Any]) -> None:
        counters = self.counters
        match msg.get("action"):
            case "kept":
                rows = [(tuple(row), number) for number, row in enumerate(msg["results"])]
                self._take(
                    msg["snapshot"],
                    [
                        Kept(key, token, run_id, seconds, size, msg["snapshot"], number)
                        for (key, token, run_id, seconds, size), number in rows
                    ],
                )
                counters.written += msg["written"]
                counters.error = ""
            case "failed":
                counters.failed += msg["count"]
                counters.unkept += msg["count"]
                counters.error, counters.error_at = msg["error"], time.time()
            case "unkept":
                counters.unkept += msg["count"]

    def _on_lost_worker(self, msg: dict[str, Any]) -> None:
        """Arrange that a lost worker's keys are loaded. They have no replica, and Dask has not rescheduled them yet."""
        tasks = self.scheduler.tasks
        for key in msg["processing-tasks"]:
            if loading := self.loading.get(key):
                loading.task.suspicious = loading.suspicious  # it was not the task that was under way
        lost = [tasks[key] for key in (*msg["lost-computed-tasks"], *msg["lost-scattered-tasks"])]
        self._learn_last_of(msg["worker"])
        self._load_unreported(msg)
        if self.holding:
            lost = self.holding.begin(msg, lost)
        self.cover([*lost, *self._restarting(msg["worker"])])
        for key in msg["lost-scattered-tasks"]:
            if key in self.loading:
                self._rescue(self.loading[key].task, msg["stimulus_id"])

    def _learn_of_copies(self, worker: str, keys: Iterable[Key] = (), **message: Any) -> None:
        """Handle the report that a worker has got keys from another, without the keys that it is about to load.

        The worker reports those when it has loaded them. For this report, Dask (2026.1) would let it drop them, since
        they are not in memory anywhere, and would then compute them again.
        """
        own = {key for key in keys if key in self.loading and _is_assigned(self.loading[key].task, worker)}
        self._add_keys(worker=worker, keys=[key for key in keys if key not in own], **message)

    def _load_unreported(self, msg: dict[str, Any]) -> None:
        """Arrange that the results are loaded which a lost worker had computed and stored, but not reported to Dask."""
        for key in msg["processing-tasks"]:
            task = self.scheduler.tasks[key]
            if task.state == "processing" and key not in self.loading and (kept := self.usable(task, set())):
                if not msg["expected"]:
                    task.suspicious -= 1  # it had ended before its worker did
                self._have_loaded(task, kept)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Handle a worker that is back, before Dask assigns it tasks."""
        if self.holding:
            self.holding.on_registered(worker, scheduler.workers[worker].name)

    def _restarting(self, worker: str) -> list[TaskState]:
        """Give the input tasks of P2P shuffles that Dask will restart: these need their inputs again."""
        shuffles = getattr(self.scheduler.plugins.get("shuffle"), "active_shuffles", {})
        barriers = [
            self.scheduler.tasks.get(BARRIER + shuffle.id)
            for shuffle in shuffles.values()
            if worker in shuffle.participating_workers
        ]
        return [task for barrier in barriers if barrier for task in barrier.dependencies]

    def _rescue(self, task: TaskState, stimulus: str) -> None:
        """Start to load scattered data, which Dask would forget: it does not forget what is being computed."""
        if task.priority is None:
            task.priority = (0, 0, 0)
        spans = self.scheduler.extensions.get("spans")
        if spans and not task.group.span_id:
            spans.observe_tasks([task], code=(), span_metadata={"collections": []})
        self.scheduler.transitions({task.key: "released"}, stimulus)

    def update_graph(self, scheduler: Scheduler, *, keys: set[Key], **kwargs: Any) -> None:
        """Arrange that the stored results of a submitted graph are loaded, before any of its tasks runs."""
        if self.kept or self._earlier:
            self.cover(scheduler.tasks[key] for key in keys)

    def cover(self, tasks: Iterable[TaskState]) -> None:
        """Arrange that each of these tasks is loaded if it would be computed; if it cannot be, try its inputs."""
        stack = list(tasks)
        seen: set[Key] = set()
        trusted: set[Key] = set()
        while stack:
            task = stack.pop()
            if task.key in seen or task.key in self.loading:
                continue
            seen.add(task.key)
            if _to_be_computed(task) and (kept := self.usable(task, trusted)):
                self._have_loaded(task, kept)
            elif task.state in ("released", "memory"):
                stack += [needed for needed in task.dependencies if _to_be_computed(needed)]

    def usable(self, task: TaskState, trusted: set[Key]) -> Kept | None:
        """Give the stored result of a task, if it certainly is this task's and can be used without side effects."""
        kept, earlier = self.kept.get(task.key), self._earlier.get(task.key)
        if task.actor or not (kept or earlier):
            return None
        if self.of_shuffle(task):
            return None
        if kept and kept.run_id == _run_id(task):
            return kept
        return earlier if earlier and self._same(task, earlier, trusted) else None

    def of_shuffle(self, task: TaskState) -> bool:
        """Tell whether a task is a part of a P2P shuffle."""
        neighbours = (task.key, *(other.key for other in (*task.dependencies, *task.dependents)))
        return of_shuffle(task.run_spec, neighbours, self.scheduler.tasks)

    def _same(self, task: TaskState, earlier: Kept, trusted: set[Key]) -> bool:
        """Tell whether a result of an earlier cluster is what this task would give."""
        if task.run_spec is None or not _line_means_its_content(task, trusted):
            return False
        try:
            return bool(fingerprint(task.run_spec) == earlier.token)
        except Exception as error:  # what tokenizing a user's object raises can be anything
            logger.warning("%r is computed: its fingerprint cannot be taken: %s", task.key, error)
            return False

    # loading

    def replace(self, task: TaskState, spec: Any, *, kept: Kept | None = None, held: HeldTask | None = None) -> None:
        """Replace the task of a key, and keep its own task and inputs in an origin."""
        origin = None
        if task.dependencies:
            origin = self.scheduler.new_task((ORIGIN, task.key), task.run_spec, "released")
            origin.priority = task.priority
            for needed in task.dependencies:
                needed.dependents.discard(task)
                if needed.waiters:
                    needed.waiters.discard(task)  # it was under way
                origin.add_dependency(needed)
            task.dependencies.clear()
        lost = task.has_lost_dependencies
        self.loading[task.key] = Loading(task, kept, held, task.run_spec, origin, lost, task.suspicious)
        task.has_lost_dependencies = False
        task.run_spec = spec

    def _have_loaded(self, task: TaskState, kept: Kept) -> None:
        self.replace(task, loading_task(kept, self.store.path, self.settings.patience), kept=kept)

    def _restore(self, key: Key, stimulus: str) -> Loading:
        """Give a task its own spec and inputs back."""
        loading = self.loading.pop(key)
        task, origin = loading.task, loading.origin
        task.run_spec = loading.spec
        task.has_lost_dependencies = loading.incomplete
        if loading.held:
            task.worker_restrictions, task.host_restrictions, task.loose_restrictions = loading.held.restrictions
        if origin is not None:
            for needed in list(origin.dependencies):
                needed.dependents.discard(origin)
                task.add_dependency(needed)
            origin.dependencies.clear()
            task.has_lost_dependencies |= origin.has_lost_dependencies
            self.scheduler.transitions({origin.key: "forgotten"}, stimulus)
        return loading

    def transition(self, key: Key, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Follow the keys that are being loaded, and drop the results of keys that were released."""
        if key in self.loading:
            if finish == "memory":
                self._on_loaded(key, stimulus_id, kwargs.get("startstops") or [])
            elif finish == "forgotten":
                origin = self.loading.pop(key).origin
                if origin is not None:
                    self.scheduler.transitions({origin.key: "forgotten"}, stimulus_id)
            elif finish == "released" and (held := self.loading[key].held):
                if held.hold.over or stimulus_id.startswith("reschedule-"):
                    self.give_back(key, stimulus_id)
            elif start == "processing" and finish == "released":
                self._on_load_ended(key, stimulus_id)
            elif finish == "erred":
                self._restore(key, stimulus_id)
        if finish == "forgotten" and key in self.kept:
            if stimulus_id.startswith("remove-client"):
                # Its user is gone and may be back with the same graph: the snapshots stay for a warm start.
                self._snapshots.pop(self.kept.pop(key).snapshot, None)
            else:
                self._drop(key)

    def _on_loaded(self, key: Key, stimulus: str, startstops: list[dict[str, Any]]) -> None:
        loading = self._restore(key, stimulus)
        kept = loading.kept
        if kept is None:
            assert self.holding
            self.holding.on_returned(loading.task)
            return
        run_id = _run_id(loading.task)
        assert run_id is not None  # it was executed just now
        kept.run_id = run_id
        self.kept[key] = kept
        self.counters.loaded += 1
        took = sum(part["stop"] - part["start"] for part in startstops if part["action"] == "compute")
        self.counters.saved_seconds += max(0.0, kept.seconds - took)

    def _on_load_ended(self, key: Key, stimulus: str) -> None:
        """Let a key be computed if the worker could not read its result; otherwise load it elsewhere, or later."""
        self.loading[key].attempts += 1
        if not stimulus.startswith("reschedule-") and self.loading[key].attempts < ATTEMPTS:
            return
        self.counters.unreadable += 1
        self._drop(key)
        self._earlier.pop(key, None)
        self.give_back(key, stimulus)

    def give_back(self, key: Key, stimulus: str) -> None:
        """Let a released key be computed, or loaded if possible."""
        if self.loading[key].spec is None:
            # Scattered data, lost as it would be without Torpor. Dask forgets a task that has lost an input. It must do
            # that itself: the key of a transition must still exist when Dask has called its plugins.
            self.loading[key].task.has_lost_dependencies = True
            return
        loading = self._restore(key, stimulus)
        if loading.held and loading.held.running:
            loading.task.suspicious += 1
        # Its inputs may have been released meanwhile, and may be in the store as well.
        self.cover([loading.task])
        if any(needed.state == "erred" for needed in loading.task.dependencies):
            # Dask would wait for such an input for ever. Its own next step comes first.
            asyncio.get_running_loop().call_soon(self._fail, loading.task, stimulus)

    def _fail(self, task: TaskState, stimulus: str) -> None:
        """Let a task fail as its input has."""
        blamed = [needed.exception_blame for needed in task.dependencies if needed.state == "erred"]
        if blamed and task.state == "waiting":
            task.exception_blame = blamed[0]
            self.scheduler.transitions({task.key: "erred"}, stimulus)

    def restart(self, scheduler: Scheduler) -> None:
        """Handle Client.restart: Dask has forgotten all tasks. Do not load results of earlier clusters any more."""
        self._earlier.clear()


def _run_id(task: TaskState) -> int | None:
    """Give Dask's number of a task's latest execution; -1 for scattered data."""
    return -1 if task.run_spec is None else task.run_id


def _is_assigned(task: TaskState, worker: str) -> bool:
    return task.processing_on is not None and task.processing_on.address == worker


def _to_be_computed(task: TaskState) -> bool:
    """Tell whether a task has no result, or has just lost it, and is not being computed."""
    return task.state == "released" or (task.state == "memory" and not task.who_has)


def _line_means_its_content(task: TaskState, trusted: set[Key]) -> bool:
    """Tell whether Dask made the keys of a task and of all it depends on from hashes; `trusted`: known to be."""
    seen: set[Key] = set()
    stack = [task]
    while stack:
        task = stack.pop()
        if task.key in seen or task.key in trusted:
            continue
        seen.add(task.key)
        if not means_its_content(task.key) or task.has_lost_dependencies:
            return False
        stack += task.dependencies
    trusted |= seen
    return True

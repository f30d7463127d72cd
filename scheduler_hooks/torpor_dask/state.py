"""What the parts on the scheduler share: the keys that are loaded or held, what is counted, and a view of the plugin.

scheduler.py has the plugin itself, and uses holding.py and page.py: these know it by the protocol `Plugin` only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from dask.typing import Key
from distributed import Scheduler
from distributed.scheduler import TaskState

from torpor.store import Store
from torpor_dask.results import Kept


@dataclass(eq=False)
class Hold:
    """The keys that wait for one lost worker."""

    worker: str
    """The address under which the worker may come back."""
    name: object
    """Its name; None if it is not known."""
    until: asyncio.TimerHandle | None = None
    over: bool = False
    promised: tuple[Key, ...] = ()
    """The keys that the worker was told to keep when it asked to come back."""


@dataclass
class HeldTask:
    """The state of a held key, in addition to `Loading`, which every key has."""

    hold: Hold
    run_id: int | None
    """Dask's number of the execution that the worker has, or had begun."""
    running: bool
    """Whether its task was running; if not, its result was in memory."""
    restrictions: tuple[set[str] | None, set[str] | None, bool]
    """The restrictions of its own task: workers, hosts, and whether they are loose."""


@dataclass
class Counters:
    """The counters of the page and of /metrics."""

    kept: int = 0
    written: int = 0
    """Bytes."""
    loaded: int = 0
    saved_seconds: float = 0.0
    """Computing time saved: how long the loaded tasks had run, less the time of loading."""
    returned: int = 0
    """Held keys that a woken worker still had, or finished."""
    unreadable: int = 0
    """Loads that failed, after which the key was computed."""
    unkept: int = 0
    """Results that should have been stored but were not: too large, bound to the cluster, queue full, store failing."""
    failed: int = 0
    """Results that could not be written to the store."""
    error: str = ""
    """The latest error of the store; empty if its latest write succeeded."""
    error_at: float = 0.0
    """Seconds since the epoch."""


@dataclass
class Loading:
    """A key that is being loaded, or is held for a worker that may be woken."""

    task: TaskState
    kept: Kept | None
    held: HeldTask | None
    spec: Any
    """Its own task; None if it is scattered data."""
    origin: TaskState | None
    """The origin that holds its inputs; None if it has none."""
    incomplete: bool
    """Whether Dask had forgotten an input: then it cannot be computed again."""
    suspicious: int
    """Dask's count of workers that died with its own task."""
    attempts: int = 0
    """How many workers failed to load it: they died, or nobody waited for the key for a moment."""


class Plugin(Protocol):
    """What holding.py and page.py use of `torpor_dask.Resume`."""

    scheduler: Scheduler
    cluster: str
    """Dask's id of the scheduler."""
    counters: Counters
    store: Store
    kept: dict[Key, Kept]
    """The results in the store that belong to the latest execution of their tasks."""
    loading: dict[Key, Loading]

    def usable(self, task: TaskState, trusted: set[Key]) -> Kept | None:
        """Give the result of a task in the store, if it can be loaded."""

    def of_shuffle(self, task: TaskState) -> bool:
        """Tell whether a task is a part of a P2P shuffle."""

    def replace(self, task: TaskState, spec: Any, *, kept: Kept | None = None, held: HeldTask | None = None) -> None:
        """Replace the task of a key by another one."""

    def give_back(self, key: Key, stimulus: str) -> None:
        """Let a released key be computed, or loaded if possible."""

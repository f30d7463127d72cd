"""The task that replaces one whose result is stored: it reads the result, or gives the key back to be computed."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from dask._task_spec import GraphNode, Task
from dask.typing import Key
from distributed import Reschedule

from torpor.store import Store
from torpor_dask.results import Kept, NoAnswer, in_time, read

REST: Final = 30.0
"""Seconds during which a store that did not answer gets less time for the next answer."""

logger = logging.getLogger("torpor.dask")


def loading_task(kept: Kept, store: str, patience: float) -> Task:
    """Give the task that loads a result. The store is not read before the task runs."""
    return Task(kept.key, load, store, kept.snapshot, kept.row, kept.key, patience)


def is_loading(spec: GraphNode | None) -> bool:
    """Tell whether a task loads a result instead of computing it."""
    return isinstance(spec, Task) and spec.func is load


_silent_since: dict[str, float] = {}
"""When each store last failed to answer (time.monotonic())."""


def load(store: str, snapshot: str, row: int, key: Key, patience: float) -> Any:
    """Read a result on a worker. Raises Reschedule when that fails, for whatever reason: the key is then computed."""
    if time.monotonic() - _silent_since.get(store, -REST) < REST:
        patience = min(patience, 1.0)
    try:
        return in_time(patience, f"cannot read {key!r}", read, Store(store), snapshot, row, key)
    except NoAnswer as error:
        _silent_since[store] = time.monotonic()
        logger.warning("%s; it is computed instead", error)
        raise Reschedule from error
    except Exception as error:
        # Unpickling can raise anything, a module that this worker does not have for one.
        logger.warning("the stored result of %r cannot be read, and is computed instead: %s", key, error)
        raise Reschedule from error

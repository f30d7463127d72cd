"""Which tasks belong to a P2P shuffle. What counts is their side effects on the workers, not what they return.

If such a task were loaded, its side effects would be missing, and the shuffle would fail. Dask fuses these tasks with
others before and after them. So each of these signs is enough: a barrier among the inputs or the outputs, a function
from Dask's modules for shuffles, or the id of a shuffle among the arguments, by which a task finds its shuffle.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, Final

from dask._task_spec import Task
from dask.typing import Key

BARRIER: Final = "shuffle-barrier-"
"""The beginning of a barrier's key, before the shuffle's id: ``distributed.shuffle._core.barrier_key``."""

_MODULES: Final = ("distributed.shuffle", "dask.dataframe.dask_expr._shuffle", "dask.dataframe.dask_expr._merge")


def of_shuffle(spec: Any, neighbours: Iterable[Key], known: Container[Key]) -> bool:
    """Tell whether a task belongs to a shuffle. `neighbours`: its key and the next ones; `known`: has all barriers."""
    if any(isinstance(key, str) and key.startswith(BARRIER) for key in neighbours):
        return True
    for part in _parts(spec):
        func = getattr(part.func, "func", part.func)  # of a functools.partial
        if (getattr(func, "__module__", None) or "").startswith(_MODULES):
            return True
        if any(type(item) is str and BARRIER + item in known for item in (*part.args, *part.kwargs.values())):
            return True
    return False


def _parts(item: Any) -> Iterator[Task]:
    """Give a task and the tasks that were fused into it."""
    if isinstance(item, Task):
        yield item
        for inner in (*item.args, *item.kwargs.values()):
            yield from _parts(inner)
    elif type(item) is dict:  # a fused task has its parts in one, by key
        for inner in item.values():
            if isinstance(inner, Task):
                yield from _parts(inner)

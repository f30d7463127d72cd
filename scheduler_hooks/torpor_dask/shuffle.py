"""Which tasks belong to a P2P shuffle: they work by what they do on the workers, not by what they return.

To load what such a task returned is to leave out what it does, and the shuffle then fails. They are told by four
signs, any of which is enough, for Dask fuses them with tasks before and after: a barrier as input or output, a function
from the modules in which Dask has them, and the id of a shuffle among the arguments, by which a task finds its shuffle.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, Final

from dask._task_spec import Task
from dask.typing import Key

BARRIER: Final = "shuffle-barrier-"
"""How the key of a barrier begins, before the shuffle's id: ``distributed.shuffle._core.barrier_key``."""

_MODULES: Final = ("distributed.shuffle", "dask.dataframe.dask_expr._shuffle", "dask.dataframe.dask_expr._merge")


def of_shuffle(spec: Any, neighbours: Iterable[Key], known: Container[Key]) -> bool:
    """Tell whether a task belongs to a shuffle. `neighbours`: its key and its edges'; `known`: where barriers are."""
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
    """Give a task and those it was fused from."""
    if isinstance(item, Task):
        yield item
        for inner in (*item.args, *item.kwargs.values()):
            yield from _parts(inner)
    elif type(item) is dict:  # a fused task has its parts in one, by key
        for inner in item.values():
            if isinstance(inner, Task):
                yield from _parts(inner)

"""Torpor freezes a running process tree, keeps it as an image, and wakes it later, here or on another node.

    snapshot = torpor.checkpoint(pid, then="kill")
    job = torpor.restore(snapshot)

Names are loaded when they are first used, so that ``import torpor`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.checkpoint import Stats, checkpoint
    from torpor.job import Job
    from torpor.restore import restore
    from torpor.run import run
    from torpor.series import Series
    from torpor.store import SnapshotInfo as Snapshot
    from torpor.store import Store

__all__ = ["Job", "Series", "Snapshot", "Stats", "Store", "checkpoint", "restore", "run"]

_PLACES = {
    "Job": "torpor.job",
    "Series": "torpor.series",
    "Snapshot": "torpor.store",
    "Stats": "torpor.checkpoint",
    "Store": "torpor.store",
    "checkpoint": "torpor.checkpoint",
    "load_ipython_extension": "torpor_jupyter.magics",  # for %load_ext torpor
    "restore": "torpor.restore",
    "run": "torpor.run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'torpor' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), "SnapshotInfo" if name == "Snapshot" else name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """This package: its names stay the functions although modules have the same ones.

    Importing a submodule, from wherever, binds it to its name in the package; `torpor.checkpoint` would be a module
    for everyone once anyone had imported something from `torpor.checkpoint`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

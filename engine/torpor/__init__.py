"""Torpor freezes a running process tree, keeps it as an image, and wakes it later, here or on another node.

    snapshot = torpor.checkpoint(pid, then="kill")
    job = torpor.restore(snapshot)

Names are loaded when they are first used, so that ``import torpor`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.dump.checkpoint import Stats, checkpoint
    from torpor.dump.series import Series
    from torpor.restorer.job import Job
    from torpor.restorer.restore import restore
    from torpor.restorer.run import run
    from torpor.store import SnapshotInfo as Snapshot
    from torpor.store import Store

__all__ = ["Job", "Series", "Snapshot", "Stats", "Store", "checkpoint", "restore", "run"]

_PLACES = {
    "Job": "torpor.restorer.job",
    "Series": "torpor.dump.series",
    "Snapshot": "torpor.store",
    "Stats": "torpor.dump.checkpoint",
    "Store": "torpor.store",
    "checkpoint": "torpor.dump.checkpoint",
    "load_ipython_extension": "torpor_jupyter.magics",  # for %load_ext torpor
    "restore": "torpor.restorer.restore",
    "run": "torpor.restorer.run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'torpor' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), "SnapshotInfo" if name == "Snapshot" else name)
    globals()[name] = value
    return value

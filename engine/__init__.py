"""Torpor freezes a running process tree, keeps it as an image, and wakes it later, here or on another node.

    snapshot = torpor.checkpoint(pid, then="kill")
    job = torpor.restore(snapshot)

Names are loaded when they are first used, so that ``import torpor`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.checkpoint import checkpoint
    from torpor.job import Job
    from torpor.restore import restore
    from torpor.run import run
    from torpor.store import SnapshotInfo as Snapshot
    from torpor.store import Store

__all__ = ["Job", "Snapshot", "Store", "checkpoint", "restore", "run"]

_PLACES = {
    "Job": "torpor.job",
    "Snapshot": "torpor.store",
    "Store": "torpor.store",
    "checkpoint": "torpor.checkpoint",
    "restore": "torpor.restore",
    "run": "torpor.run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'torpor' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), "SnapshotInfo" if name == "Snapshot" else name)
    globals()[name] = value
    return value

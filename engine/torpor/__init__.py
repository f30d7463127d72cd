"""Torpor freezes a running process tree, keeps it as an image, and wakes it later, here or on another node.

    snapshot = torpor.checkpoint(pid, then="kill")
    job = torpor.restore(snapshot)

Names are imported on first use, so that ``import torpor`` is fast.

The public interface is `__all__` of `torpor`, `torpor.errors`, `torpor.store`, `torpor.image`, `torpor.metrics`,
`torpor.processes` and `torpor.cli`. Everything else may change without notice.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; `typing` itself might be another one until torpor.entry has run
if TYPE_CHECKING:
    from typing import Any

    from torpor import cli as cli
    from torpor import errors as errors
    from torpor import image as image
    from torpor import metrics as metrics
    from torpor import processes as processes
    from torpor import store as store
    from torpor.dump.checkpoint import Stats, checkpoint
    from torpor.dump.series import Series
    from torpor.objects.sockets.tcp import client_ports
    from torpor.remote.freeze import LastToStop
    from torpor.restorer.job import Job
    from torpor.restorer.restore import Files, listening_ports, restore
    from torpor.restorer.run import below_init, run, start
    from torpor.store import SnapshotInfo as Snapshot
    from torpor.store import Store
    from torpor.util.isolation import isolation

__all__ = [
    "Files",
    "Job",
    "LastToStop",
    "Series",
    "Snapshot",
    "Stats",
    "Store",
    "below_init",
    "checkpoint",
    "client_ports",
    "isolation",
    "listening_ports",
    "restore",
    "run",
    "start",
]

_MODULES = ("cli", "errors", "image", "metrics", "processes", "store")
_PLACES = {
    "Files": "torpor.restorer.restore",
    "Job": "torpor.restorer.job",
    "LastToStop": "torpor.remote.freeze",
    "Series": "torpor.dump.series",
    "Snapshot": "torpor.store",
    "Stats": "torpor.dump.checkpoint",
    "Store": "torpor.store",
    "below_init": "torpor.restorer.run",
    "checkpoint": "torpor.dump.checkpoint",
    "client_ports": "torpor.objects.sockets.tcp",
    "isolation": "torpor.util.isolation",
    "listening_ports": "torpor.restorer.restore",
    "load_ipython_extension": "torpor_jupyter.client.magics",  # for %load_ext torpor
    "restore": "torpor.restorer.restore",
    "run": "torpor.restorer.run",
    "start": "torpor.restorer.run",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415  see above

    if name in _MODULES:
        return import_module(f"torpor.{name}")
    if name == "__version__":
        return str(import_module("importlib.metadata").version("torpor"))
    if name not in _PLACES:
        raise AttributeError(f"module 'torpor' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), "SnapshotInfo" if name == "Snapshot" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]

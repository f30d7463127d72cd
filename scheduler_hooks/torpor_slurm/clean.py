"""`torpor slurm clean` removes the directories of jobs that are over. A site's Epilog may call it, too."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from torpor.errors import NotFound
from torpor.store import as_store_errors
from torpor_slurm import controller
from torpor_slurm.controller import SlurmError
from torpor_slurm.job_directory import JobDirectory


def clean(base: str, older: float) -> list[Path]:
    """Remove the directories of jobs that have finished, or that Slurm does not know any more.

    A job that Slurm still knows may be requeued, however it ended, and is left alone. So are the jobs of another
    cluster, and all unfinished jobs while Slurm does not answer.

    Args:
        base: the store.
        older: a job's directory is removed only if nothing has changed in it for so many seconds.

    Returns:
        The directories that were removed.

    Raises:
        StoreError, NotPermitted: they cannot be removed.
    """
    removed = []
    cluster = cache(_cluster)
    for directory in JobDirectory.all(base, former=True):
        if time.time() - _last_change(directory) < older:
            continue
        places = directory.places()
        finished = places and all(place.finished for place in places)
        if not (finished or directory.former or _is_forgotten(directory, cluster)):
            continue
        if not all(map(_discard, places)):
            continue
        with as_store_errors(str(directory.whole), "it cannot be removed"):
            shutil.rmtree(directory.whole)
        removed.append(directory.whole)
    return removed


def _discard(place: JobDirectory) -> bool:
    """Remove the snapshots of a command. Return False if some process is reading them."""
    snapshots = place.store.snapshots()
    return not snapshots or not place.store.discard(snapshots).kept


def _last_change(directory: JobDirectory) -> float:
    last = 0.0
    for name in ("state", "log", "finished"):
        with suppress(FileNotFoundError):
            last = max(last, (directory.path / name).stat().st_mtime)
    return last


def _cluster() -> str:
    try:
        return controller.configuration().get("ClusterName", "")
    except (SlurmError, NotFound):
        return ""


def _is_forgotten(directory: JobDirectory, cluster: Callable[[], str]) -> bool:
    """Whether slurmctld of the job's cluster answers that it knows no such job."""
    if directory.cluster != cluster():
        return False
    try:
        controller.job_record(directory.job)
    except (SlurmError, NotFound) as error:
        return "Invalid job id" in str(error)
    return False

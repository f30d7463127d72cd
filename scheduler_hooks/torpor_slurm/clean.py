"""The directories of jobs that are over, removed: `torpor slurm clean`, which a site's Epilog calls as well."""

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
from torpor_slurm.home import JobHome


def clean(base: str, older: float) -> list[Path]:
    """Remove what jobs have left in a store that are over: finished, or not known to Slurm any more.

    A job that Slurm knows may be requeued, however it ended, and is left alone; so is one of another cluster, and
    every unfinished one while Slurm does not answer.

    Args:
        base: the store.
        older: seconds since the last thing that happened to the job.

    Returns:
        The directories that were removed.

    Raises:
        StoreError, NotPermitted: they cannot be removed.
    """
    removed = []
    cluster = cache(_cluster)
    for home in JobHome.all(base, former=True):
        if time.time() - _last_change(home) >= older and (home.finished or home.former or _is_forgotten(home, cluster)):
            if (snapshots := home.store.snapshots()) and home.store.discard(snapshots).kept:
                continue  # someone is reading them
            with as_store_errors(str(home.path), "it cannot be removed"):
                shutil.rmtree(home.path)
            removed.append(home.path)
    return removed


def _last_change(home: JobHome) -> float:
    last = 0.0
    for name in ("state", "log", "finished"):
        with suppress(FileNotFoundError):
            last = max(last, (home.path / name).stat().st_mtime)
    return last


def _cluster() -> str:
    try:
        return controller.configuration().get("ClusterName", "")
    except (SlurmError, NotFound):
        return ""


def _is_forgotten(home: JobHome, cluster: Callable[[], str]) -> bool:
    """Whether the controller of the job's cluster has answered that it knows no such job."""
    if home.cluster != cluster():
        return False
    try:
        controller.job_record(home.job)
    except (SlurmError, NotFound) as error:
        return "Invalid job id" in str(error)
    return False

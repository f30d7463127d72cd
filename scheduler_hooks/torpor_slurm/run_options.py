"""The options of `torpor run` in a Slurm job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torpor import Files
from torpor.processes import PortableTo

OnTimeout = Literal["requeue", "stop"]
OnRefused = Literal["older", "anew", "stop"]
Rollback = Literal["append-only", "none"]


@dataclass(frozen=True)
class Options:
    """The options that the user has given, with their defaults."""

    every: float | None = None
    """Seconds between two saves, for nodes that fail without a warning; None: save only when warned."""
    on_timeout: OnTimeout = "stop"
    on_refused: OnRefused = "older"
    """If the newest snapshot cannot be woken here: wake an older one, also start anew, or fail at once."""
    rollback_files: Rollback = "append-only"
    files: Files = "as-they-were"
    """Whether a snapshot is woken even if its files were changed in place since, or with those files rolled back."""
    with_files: tuple[str, ...] = ()
    """Patterns of files whose content is saved, as for `torpor.checkpoint`."""
    portable: PortableTo | None = None
    """The level of x86-64 to which the job's libraries keep, so that it can be woken on all processors of the level."""
    mpi: Literal["tcp"] | None = None
    """If "tcp", MPI must not use the adapter of a fast network (mpi_environment.py)."""

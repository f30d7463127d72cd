"""The options of `torpor run` in a Slurm job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torpor import Files

OnTimeout = Literal["requeue", "stop"]
OnRefused = Literal["older", "anew", "stop"]
Rollback = Literal["append-only", "none"]


@dataclass(frozen=True)
class Options:
    """What the user chose, and what holds otherwise."""

    every: float | None = None
    """Seconds between two saves, for nodes that fail without a warning; None: save only when warned."""
    on_timeout: OnTimeout = "stop"
    on_refused: OnRefused = "older"
    """If the newest snapshot cannot be woken here: wake an older one, also start anew, or fail at once."""
    rollback_files: Rollback = "append-only"
    files: Files = "as-they-were"
    """Whether a snapshot is woken even if its files were changed in place since."""
    mpi: Literal["tcp"] | None = None
    """Whether MPI is to leave the adapter of a fast network alone (mpi_environment.py)."""

"""Options for Slurm jobs that `torpor run` and `torpor sbatch` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from torpor.cli.common import files_option

F = TypeVar("F", bound=Callable[..., Any])


def slurm_options(function: F) -> F:
    """Add --on-timeout, --on-refused, --rollback-files, --files and --mpi, as in torpor_slurm's run_options.py."""
    for option in (
        click.option(
            "--mpi",
            type=click.Choice(["tcp"]),
            help="In a Slurm job: have Open MPI and MPICH use shared memory and TCP, which can be saved, instead of "
            "InfiniBand, Slingshot or EFA.",
        ),
        files_option(
            "In a Slurm job, if files were changed in place since the snapshot: refuse it, use them as they are, "
            "or bring those back that the snapshot has."
        ),
        click.option(
            "--rollback-files",
            type=click.Choice(["append-only", "none"]),
            default="append-only",
            show_default=True,
            help="In a Slurm job, at a wake: truncate output files to their size in the snapshot; what is cut off is "
            "kept in another file.",
        ),
        click.option(
            "--on-refused",
            type=click.Choice(["older", "anew", "stop"]),
            default="older",
            show_default=True,
            help="In a Slurm job whose newest snapshot cannot be woken on its node: older: wake an older one; anew: if "
            "none can be woken, start the job from the beginning; stop: fail at once.",
        ),
        click.option(
            "--on-timeout",
            type=click.Choice(["requeue", "stop"]),
            default="stop",
            show_default=True,
            help="In a Slurm job that was saved at its time limit: requeue it, or let it end.",
        ),
    ):
        function = option(function)
    return function

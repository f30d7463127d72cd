"""Options that decide what happens to a Slurm job; `torpor run` and `torpor sbatch` share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def slurm_options(function: F) -> F:
    """Add --on-timeout, --on-refused, --rollback-files and --files, named as in the supervisor's Options."""
    for option in (
        click.option(
            "--files",
            type=click.Choice(["as-they-were", "as-they-are"]),
            default="as-they-were",
            show_default=True,
            help="In a Slurm job: whether a snapshot is refused when files were changed in place since.",
        ),
        click.option(
            "--rollback-files",
            type=click.Choice(["append-only", "none"]),
            default="append-only",
            show_default=True,
            help="In a Slurm job: cut what output files grew by since the snapshot that is woken (kept aside).",
        ),
        click.option(
            "--on-refused",
            type=click.Choice(["older", "anew", "stop"]),
            default="older",
            show_default=True,
            help="In a Slurm job, when the newest snapshot cannot be woken on its node: go back to an older one, "
            "or else begin anew, or give up.",
        ),
        click.option(
            "--on-timeout",
            type=click.Choice(["requeue", "stop"]),
            default="stop",
            show_default=True,
            help="In a Slurm job, when it was saved at its time limit: requeue it, or let it end.",
        ),
    ):
        function = option(function)
    return function

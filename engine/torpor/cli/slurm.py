"""`torpor slurm status [JOBID]`, `requeue JOBID`, `clean`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from torpor.cli.common import DurationType, command_options, console, files_option, print_json, store_option

if TYPE_CHECKING:
    from torpor.restorer.restore import Files


@click.group("slurm", short_help="Show, requeue and clean up Slurm jobs.")
def command() -> None:
    """Show, requeue and clean up Slurm jobs that run under Torpor."""


@command.command("status")
@click.argument("job", metavar="[JOBID]", required=False)
@store_option
@command_options
def status(job: str | None, store: str | None, as_json: bool) -> None:
    """Show jobs under Torpor: their snapshots, the last pause, and whether Slurm's warning time is long enough."""
    from torpor.store import Store
    from torpor_slurm import report

    rows = report.status(Store(store).path, job)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    if not rows:
        click.echo("no jobs")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in report.HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.in_words())
    console().print(table)


@command.command("requeue")
@click.argument("job", metavar="JOBID")
@files_option(
    "If files were changed in place since the snapshot: refuse to wake it, use them as they are, or bring those "
    "back that it has; for its next run only."
)
@store_option
@command_options
def requeue(job: str, files: Files, store: str | None, as_json: bool) -> None:
    """Requeue a job that was saved, or whose snapshots could not be woken: it then continues."""
    from torpor.store import Store
    from torpor_slurm.job_directory import requeue as again

    directory = again(Store(store).path, job, files)
    if as_json:
        print_json({"job": directory.job, "files": files})
    else:
        click.echo(f"job {directory.job} is in the queue again")


@command.command("clean")
@click.option("--older", type=DurationType(), default="7d", show_default=True, help="Keep what is younger than this.")
@store_option
@command_options
def clean(older: float, store: str | None, as_json: bool) -> None:
    """Remove the directories and snapshots of jobs that have finished or that Slurm no longer knows."""
    from torpor.store import Store
    from torpor_slurm.clean import clean as remove

    removed = remove(str(Store(store).path), older)
    if as_json:
        print_json([str(path) for path in removed])
    else:
        click.echo("".join(f"removed {path}\n" for path in removed) or "nothing to remove\n", nl=False)

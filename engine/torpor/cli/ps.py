"""`torpor ps`."""

from __future__ import annotations

import pwd
import time
from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import command_options, console, human_age, human_span, print_json, printable

if TYPE_CHECKING:
    from torpor.objects.process.jobs import RunningJob
    from torpor.store import SnapshotInfo

HEADINGS = ("PID", "USER", "HOW", "RUNS FOR", "SAVED", "NEXT", "WHAT")


@click.command("ps", short_help="List the jobs that run under Torpor here.")
@command_options
def command(as_json: bool) -> None:
    """List the jobs under Torpor on this host that you may see: those of `torpor run`, woken ones, kernels, Slurm's.

    `torpor checkpoint` saves one of them, by its PID or its name: that of --name, of its newest snapshot, or of its
    program or script.
    """
    from torpor.objects.process import jobs

    found = jobs.running()
    saves = list(jobs.saves(found))
    if as_json:
        print_json([_as_json(job, saved) for job, saved in zip(found, saves, strict=True)])
        return
    if not found:
        click.echo("no jobs", err=True)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading != "WHAT", overflow="fold")
    for job, saved in zip(found, saves, strict=True):
        table.add_row(*_row(job, saved))
    console().print(table)


def _next_ns(job: RunningJob, saves: list[SnapshotInfo] | None) -> int | None:
    if job.every is None or saves is None:
        return None
    return (saves[-1].created_ns if saves else job.began_ns) + int(job.every * 10**9)


def _as_json(job: RunningJob, saves: list[SnapshotInfo] | None) -> dict[str, Any]:
    from torpor.objects.process import jobs

    return {
        "pid": job.pid,
        "name": printable(job.name),
        "given_name": printable(jobs.name_of(job, saves)),
        "uid": job.uid,
        "how": job.how,
        "slurm_job": job.slurm_job,
        "began_ns": job.began_ns,
        "store": job.store,
        "snapshots": None if saves is None else [info.id for info in saves],
        "saved_ns": saves[-1].created_ns if saves else None,
        "next_ns": _next_ns(job, saves),
    }


def _row(job: RunningJob, saves: list[SnapshotInfo] | None) -> tuple[str, ...]:
    from torpor.objects.process import jobs

    try:
        user = pwd.getpwuid(job.uid).pw_name
    except KeyError:
        user = str(job.uid)
    name = jobs.name_of(job, saves)
    now = time.time_ns()
    due = _next_ns(job, saves)
    return (
        str(job.pid),
        user,
        f"Slurm job {printable(job.slurm_job)}" if job.how == "slurm" else job.how,
        human_span(now - job.began_ns),
        human_age(saves[-1].created_ns, now) if saves else "?" if saves is None else "never",
        "" if due is None else f"in {human_span(due - now)}" if due > now else "now",
        printable(f"{name}: {job.name}" if name else job.name),
    )

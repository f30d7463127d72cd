"""`torpor prune --keep-last N`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import (
    KINDS,
    command_options,
    human_age,
    interrupted,
    open_store,
    print_json,
    snapshot_json,
    store_option,
    tell,
)
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from torpor.store import PruneReport


def report_json(report: PruneReport) -> dict[str, Any]:
    """Return what was removed as JSON values."""
    return {
        "dry_run": report.dry_run,
        "snapshots": [snapshot_json(info) for info in report.snapshots],
        "packs": list(report.packs),
        "shrunk": list(report.shrunk),
        "leftovers": list(report.leftovers),
        "freed": report.freed,
        "kept": report.kept,
    }


@click.command("prune", short_help="Remove all but the newest snapshots.")
@click.option("--keep-last", type=click.IntRange(min=0), required=True, metavar="N", help="How many to keep.")
@click.option(
    "--kind",
    type=KINDS,
    default="tree",
    show_default=True,
    help="Of which snapshots: process trees, or dask for results of Dask tasks.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would be removed.")
@store_option
@command_options
def command(keep_last: int, kind: str, dry_run: bool, store: str | None, as_json: bool) -> None:
    """Remove all but the newest N snapshots of a kind, and the data that no snapshot needs."""
    with interrupted("snapshots that are still listed are whole; prune again to free the rest"):
        report = open_store(store).prune(keep_last, dry_run=dry_run, kind=kind)
    if as_json:
        print_json(report_json(report))
        return
    done = "would remove" if dry_run else "removed"
    for info in report.snapshots:
        click.echo(f"{done} {info.id} ({human_age(info.created_ns)})")
    for name in report.leftovers:
        click.echo(f"{done} {name}, left by an interrupted save")
    click.echo(f"{readable(report.freed)} {'would be freed' if dry_run else 'freed'}")
    if report.kept:
        tell(f"some data stays: {report.kept}")

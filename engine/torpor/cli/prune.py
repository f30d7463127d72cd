"""`torpor prune --keep-last N`, `--keep-daily N`..."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import (
    KINDS,
    DurationType,
    command_options,
    human_age,
    interrupted,
    open_store,
    parse_tags,
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


COUNT = click.IntRange(min=0)


@click.command("prune", short_help="Remove old snapshots.")
@click.option("--keep-last", type=COUNT, metavar="N", help="Keep the newest N.")
@click.option("--keep-hourly", type=COUNT, metavar="N", help="Keep the last one of each hour, for N hours with any.")
@click.option("--keep-daily", type=COUNT, metavar="N", help="The same for days.")
@click.option("--keep-weekly", type=COUNT, metavar="N", help="The same for weeks.")
@click.option("--keep-monthly", type=COUNT, metavar="N", help="The same for months.")
@click.option(
    "--keep-within", type=DurationType(), metavar="TIME", help="Keep those of the TIME before the newest: 12h, 30d."
)
@click.option(
    "--kind",
    type=KINDS,
    default="tree",
    show_default=True,
    help="Of which snapshots: process trees, or dask for results of Dask tasks.",
)
@click.option("--tag", "tags", metavar="K=V", multiple=True, callback=parse_tags, help="With this label; repeatable.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would be removed.")
@store_option
@command_options
def command(kind: str, tags: dict[str, str], dry_run: bool, store: str | None, as_json: bool, **keep: Any) -> None:
    """Remove snapshots of a kind that no --keep option keeps, and the data that no snapshot needs."""
    from torpor.util import settings

    if all(value is None for value in keep.values()):
        keep = {name: settings.get(f"prune.{name.replace('_', '-')}").value for name in keep}
    if all(value is None for value in keep.values()):
        raise click.UsageError("say what to keep: --keep-last 5, or --keep-daily 7 --keep-weekly 4")
    with interrupted("snapshots that are still listed are whole; prune again to free the rest"):
        report = open_store(store).prune(**keep, dry_run=dry_run, kind=kind, tags=tags)
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

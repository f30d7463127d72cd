"""`torpor rm ID...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from torpor.cli.common import SnapshotType, command_options, interrupted, open_store, print_json, store_option, tell
from torpor.cli.prune import report_json
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from torpor.store import PruneReport


@click.command("rm", short_help="Remove snapshots.")
@click.argument("snapshots", metavar="ID...", type=SnapshotType(), nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove them even if they are pinned, or a kernel or a job waits in them.")
@store_option
@command_options
def command(snapshots: tuple[str, ...], force: bool, store: str | None, as_json: bool) -> None:
    """Remove snapshots. Every other one can still be restored. If one is not there or pinned, none is removed."""
    place = open_store(store)
    infos = place.removable(snapshots, force=force)  # first: none is removed if one is not there, or pinned
    reports: list[PruneReport] = []
    for info in infos:
        with interrupted(f"{len(reports)} of {len(infos)} were removed before; the others are whole"):
            reports.append(place.remove(info.id, force=force))
        if as_json:
            continue
        click.echo(f"removed {info.id}, {readable(reports[-1].freed)} freed")
        if reports[-1].kept:
            tell(f"some of its data stays until `torpor prune` can remove it: {reports[-1].kept}")
    if as_json:
        print_json(report_json(_in_one(reports)))


def _in_one(reports: list[PruneReport]) -> PruneReport:
    from torpor.store import PruneReport

    return PruneReport(
        snapshots=tuple(info for report in reports for info in report.snapshots),
        packs=tuple(pack for report in reports for pack in report.packs),
        shrunk=tuple(dict.fromkeys(pack for report in reports for pack in report.shrunk)),
        leftovers=tuple(name for report in reports for name in report.leftovers),
        freed=sum(report.freed for report in reports),
        kept="; ".join(dict.fromkeys(report.kept for report in reports if report.kept)),
    )

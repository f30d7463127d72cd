"""`torpor rm ID`."""

from __future__ import annotations

import click

from torpor.cli.common import command_options, open_store, print_json, snapshot_argument, store_option, tell
from torpor.cli.prune import report_json
from torpor.util.sizes import readable


@click.command("rm")
@snapshot_argument
@click.option("--force", is_flag=True, help="Remove it even if it is pinned, or a kernel or a job waits in it.")
@store_option
@command_options
def command(snapshot: str, force: bool, store: str | None, as_json: bool) -> None:
    """Remove a snapshot. Every other one can still be restored."""
    report = open_store(store).remove(snapshot, force=force)
    if as_json:
        print_json(report_json(report))
        return
    for info in report.snapshots:
        click.echo(f"removed {info.id}, {readable(report.freed)} freed")
    if report.kept:
        tell(f"some of its data stays until `torpor prune` can remove it: {report.kept}")

"""`torpor ls`."""

from __future__ import annotations

import click

from torpor.cli.common import (
    command_options,
    console,
    human_age,
    open_store,
    print_json,
    printable,
    snapshot_json,
    store_option,
)
from torpor.util.sizes import readable


@click.command("ls")
@store_option
@command_options
def command(store: str | None, as_json: bool) -> None:
    """List the snapshots, oldest first."""
    place = open_store(store)
    infos = place.snapshots()
    if as_json:
        print_json([snapshot_json(info) for info in infos])
        return
    if not infos:
        click.echo(f"no snapshots in {place.path}", err=True)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True)
    table.add_column("AGE", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("NEW", justify="right", no_wrap=True)
    table.add_column("HOST", no_wrap=True)
    table.add_column("WHAT", overflow="fold")
    for info in infos:
        tags = " ".join(f"{key}={value}" for key, value in sorted(info.tags.items()))
        what = f"damaged: {info.damage}" if info.damage else f"{info.summary}  {tags}"
        age = human_age(info.created_ns) if info.created_ns else ""
        table.add_row(
            info.id,
            age,
            readable(info.size),
            readable(info.written),
            printable(info.host),
            printable(what).rstrip(),
            style="red" if info.damage else "",
        )
    console().print(table)

"""`torpor import FILE`."""

from __future__ import annotations

import click

from torpor.cli.common import command_options, interrupted, print_json, progress_bar, snapshot_json, store_option


@click.command("import", short_help="Add a snapshot from a file to the store.")
@click.argument("file", type=click.Path(dir_okay=False))
@store_option
@command_options
def command(file: str, store: str | None, as_json: bool) -> None:
    """Add the snapshot in a FILE of `torpor export` to the store, under its id.

    A snapshot is a program that will run as you: import it only from somebody whose programs you would run.
    """
    from torpor.store import Store

    place = Store(store)
    place.create()
    with progress_bar("importing") as progress, interrupted("nothing was imported"):
        info = place.import_file(file, progress)
    if as_json:
        print_json(snapshot_json(info))
    else:
        click.echo(info.id)

"""`torpor init`."""

from __future__ import annotations

import click

from torpor.cli.common import command_options, print_json, printable, store_option


@click.command("init", short_help="Make a store.")
@store_option
@command_options
def command(store: str | None, as_json: bool) -> None:
    """Make the store, and print its directory; a store that is there stays as it is.

    The first checkpoint makes a store, too, but not in a directory that holds other files.
    """
    from torpor.store import Store

    made = Store(store)
    made.create(among_files=True)
    if as_json:
        print_json({"store": made.path})
    else:
        click.echo(printable(made.path))

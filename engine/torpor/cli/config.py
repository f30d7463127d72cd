"""`torpor config`."""

from __future__ import annotations

from typing import Any

import click

from torpor.cli.common import command_options, console, print_json, printable

HEADINGS = ("SETTING", "VALUE", "FROM", "WHAT")


@click.command("config", short_help="Show what is set, and where.")
@command_options
def command(as_json: bool) -> None:
    """Show what is set for Torpor here, and where: in the environment or in a configuration file.

    Options override the environment, which overrides the user's file, which overrides the host's.
    """
    from torpor.store import default_path
    from torpor.util import settings

    found = {name: settings.get(name) for name in settings.SETTINGS}
    values: dict[str, Any] = {name: one.value for name, one in found.items()} | {"store": default_path()}
    if as_json:
        shown = {name: {"value": values[name], "from": one.source} for name, one in found.items()}
        print_json({"settings": shown, "files": list(settings.files())})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for name, one in found.items():
        value = settings.written(name, values[name])
        table.add_row(name, printable(value), printable(one.source), settings.SETTINGS[name].help)
    console().print(table)
    click.echo(f"\nFiles: {', '.join(map(printable, settings.files()))}")

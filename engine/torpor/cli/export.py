"""`torpor export ID FILE`."""

from __future__ import annotations

import click

from torpor.cli.common import (
    command_options,
    interrupted,
    open_store,
    print_json,
    progress_bar,
    snapshot_argument,
    snapshot_json,
    store_option,
)


@click.command("export", short_help="Write a snapshot to a file.")
@snapshot_argument
@click.argument("file", type=click.Path(dir_okay=False))
@store_option
@command_options
def command(snapshot: str, file: str, store: str | None, as_json: bool) -> None:
    """Write a snapshot to a new FILE, which `torpor import` adds to another store.

    The file holds the memory of the job with its keys and passwords, as the store does.
    """
    with progress_bar("exporting") as progress, interrupted("no file was written"):
        info = open_store(store).export_file(snapshot, file, progress)
    if as_json:
        print_json({**snapshot_json(info), "file": file})
    else:
        click.echo(file)

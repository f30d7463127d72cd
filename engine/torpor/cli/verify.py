"""`torpor verify ID|--all`."""

from __future__ import annotations

import click

from torpor.cli.common import (
    SnapshotType,
    command_options,
    interrupted,
    open_store,
    print_json,
    progress_bar,
    store_option,
    tell,
)

DAMAGED = 31  # the exit code of torpor.errors.ImageDamaged


@click.command("verify", short_help="Read snapshots to the last byte.")
@click.argument("snapshot", metavar="[ID]", type=SnapshotType(), required=False)
@click.option("--all", "everything", is_flag=True, help="Verify every snapshot of the store.")
@store_option
@command_options
def command(snapshot: str | None, everything: bool, store: str | None, as_json: bool) -> int:
    """Read a snapshot, or with --all every one, to the last byte and report what is damaged."""
    if (snapshot is None) != everything:
        raise click.UsageError("name one snapshot, or use --all")
    with progress_bar("verifying") as progress, interrupted("not everything was read"):
        problems = open_store(store).verify(snapshot, progress)
    if as_json:
        print_json(
            {
                "sound": not problems,
                "problems": [{"subject": p.subject, "why": p.why, "advice": p.advice} for p in problems],
            }
        )
    elif problems:
        for problem in problems:
            tell(f"torpor: {problem}")
    else:
        click.echo("sound")
    return DAMAGED if problems else 0

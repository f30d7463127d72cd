"""`torpor run -- CMD...`."""

from __future__ import annotations

import click

from torpor.cli.common import DurationType, command_options, exit_as, store_option


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@store_option
@click.option("--every", type=DurationType(), metavar="TIME", help="Save it this often, as in 90s, 10m, 1h30m.")
@click.argument("cmd", metavar="CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@command_options
def command(cmd: tuple[str, ...], store: str | None, every: float | None, as_json: bool) -> int:
    """Run a command so that it can be frozen, and save it regularly.

    Where Yama lets only the launcher of a process trace it, this is the launcher. It passes signals on and
    exits as the command exits.
    """
    import torpor

    def failed(error: Exception) -> None:
        click.echo(f"torpor: not saved this time: {error}", err=True)

    return exit_as(torpor.run(cmd, store=store, every=every, failed=failed))

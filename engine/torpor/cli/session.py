"""The state of one invocation of the command line."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass
class Session:
    """The values of the options that every command has."""

    json: bool = False
    verbose: bool = False


def _set_verbose(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.ensure_object(Session).verbose = True


verbose_option = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Print errors in full."
)

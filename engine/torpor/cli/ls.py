"""`torpor ls`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from torpor.cli.common import (
    KINDS,
    command_options,
    console,
    human_age,
    open_store,
    parse_tags,
    print_json,
    printable,
    snapshot_json,
    store_option,
)
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from torpor.store import SnapshotInfo

COLUMNS = ("ID", "AGE", "SIZE", "NEW", "HOST", "WHAT")
GIVE_WAY = {"HOST": 40, "SIZE": 40, "NEW": 40, "AGE": 16}
"""Columns that are left out, in this order, if the terminal is so narrow that fewer characters remain for WHAT."""


class _Tags(dict[str, str]):
    """Tags of a snapshot; one that it does not have is empty."""

    def __missing__(self, _: str) -> str:
        return ""


def _filled(line: str, info: SnapshotInfo) -> str:
    return line.format(**snapshot_json(info) | {"tags": _Tags(info.tags)})


def _check_line(_: click.Context, param: click.Parameter, line: str | None) -> str | None:
    from torpor.store import SnapshotInfo

    try:
        if line is not None:
            _filled(line, SnapshotInfo("", ""))
    except KeyError as error:
        raise click.BadParameter(
            f"a snapshot has no {error}; `torpor ls --json` shows what it has", param=param
        ) from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise click.BadParameter(f"{line!r} cannot be filled in: {error}", param=param) from None
    return line


@click.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids alone.")
@click.option(
    "--format",
    "line",
    metavar="LINE",
    callback=_check_line,
    help="Print LINE for each, with keys of --json in braces: '{id} {host} {tags[name]}'.",
)
@click.option("--tag", "tags", metavar="K=V", multiple=True, callback=parse_tags, help="With this label; repeatable.")
@click.option("--host", help="Saved on this host.")
@click.option("--kind", type=KINDS, help="Of this kind: tree, for process trees, or dask, for results of Dask tasks.")
@click.option("--latest", type=click.IntRange(min=1), metavar="N", help="The newest N of them.")
@store_option
@command_options
def command(
    quiet: bool,
    line: str | None,
    tags: dict[str, str],
    host: str | None,
    kind: str | None,
    latest: int | None,
    store: str | None,
    as_json: bool,
) -> None:
    """List the snapshots, oldest first."""
    place = open_store(store)
    infos = [
        info
        for info in place.snapshots()
        if tags.items() <= info.tags.items() and host in (None, info.host) and kind in (None, info.kind)
    ][-(latest or 0) :]
    if as_json:
        print_json([snapshot_json(info) for info in infos])
    elif quiet or line is not None:
        for info in infos:
            click.echo(info.id if line is None else printable(_filled(line, info)))
    elif infos:
        _print_table(infos)
    else:
        which = "such snapshots" if tags or host or kind else "snapshots"
        click.echo(f"no {which} in {place.path}", err=True)


def _print_table(infos: list[SnapshotInfo]) -> None:
    from rich.table import Table

    rows = [_row(info) for info in infos]
    screen = console()
    shown = list(range(len(COLUMNS)))
    for name, wanted in GIVE_WAY.items():
        widths = [max(len(COLUMNS[k]), *(len(row[k]) for row in rows)) + 2 for k in shown[:-1]]
        if sum(widths) + wanted <= screen.width:
            break
        shown.remove(COLUMNS.index(name))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for k in shown:
        numbers = COLUMNS[k] in ("SIZE", "NEW")
        last = k == shown[-1]
        table.add_column(
            COLUMNS[k], justify="right" if numbers else "left", no_wrap=not last, overflow="fold" if last else "ignore"
        )
    for info, row in zip(infos, rows, strict=True):
        table.add_row(*(row[k] for k in shown), style="red" if info.damage else "")
    screen.print(table)


def _row(info: SnapshotInfo) -> tuple[str, ...]:
    tags = " ".join(f"{key}={value}" for key, value in sorted(info.tags.items()))
    what = f"damaged: {info.damage}" if info.damage else f"{info.summary}  {tags}"
    age = human_age(info.created_ns) if info.created_ns else ""
    sizes = (readable(info.size), readable(info.written))
    return (info.id, age, *sizes, printable(info.host), printable(what).rstrip())

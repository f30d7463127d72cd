"""`torpor diff A B`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import (
    SnapshotType,
    command_options,
    console,
    interrupted,
    open_store,
    print_json,
    printable,
    progress_bar,
    snapshot_json,
    store_option,
)
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from torpor.image import Comparison, MemoryChange, Process, ProcessChange


@click.command("diff", short_help="Show what has changed between two snapshots.")
@click.argument("before", metavar="A", type=SnapshotType())
@click.argument("after", metavar="B", type=SnapshotType())
@store_option
@command_options
def command(before: str, after: str, store: str | None, as_json: bool) -> None:
    """Show what has changed from snapshot A to B: processes, memory, descriptors, and the files that are open."""
    from torpor.image import compare

    place = open_store(store)
    infos = place.resolve(before), place.resolve(after)
    with (
        place.open(infos[0], knows=infos[0].needs) as was,
        place.open(infos[1], knows=infos[1].needs) as now,
        interrupted("nothing was changed"),
        progress_bar("comparing") as progress,
    ):
        found = compare(was, now, progress)
    if as_json:
        print_json({"before": snapshot_json(infos[0]), "after": snapshot_json(infos[1]), **_as_json(found)})
        return
    out = console()
    for info in infos:
        out.print(f"{info.id}  {printable(info.summary)}")
    for line in _lines(found) or ["no difference"]:
        out.print(line)


def _as_json(found: Comparison) -> dict[str, Any]:
    return {
        "came": [_named(process) for process in found.came],
        "went": [_named(process) for process in found.went],
        "processes": [_process_json(one, found) for one in found.both],
        "shared_memory": vars(found.shared),
    }


def _named(process: Process) -> dict[str, Any]:
    return {"pid": process.pid, "name": printable(process.threads[0].name) if process.threads else ""}


def _process_json(one: ProcessChange, found: Comparison) -> dict[str, Any]:
    from torpor.cli.describe import describe_description

    return {
        **_named(one.after),
        "memory": vars(one.memory),
        "opened": [{"fd": fd, **describe_description(what, found.after)} for fd, what in one.opened.items()],
        "closed": [{"fd": fd, **describe_description(what, found.before)} for fd, what in one.closed.items()],
        "files": [
            {
                "path": printable(file.path),
                "position": dict(zip(("before", "after"), file.position, strict=True)),
                "size": dict(zip(("before", "after"), file.size, strict=True)),
            }
            for file in one.files
        ],
    }


def _lines(found: Comparison) -> list[str]:
    lines = [f"+ {process['pid']} {process['name']}" for process in map(_named, found.came)]
    lines += [f"- {process['pid']} {process['name']}" for process in map(_named, found.went)]
    for one in found.both:
        shown = _process_json(one, found)
        below = [f"memory: {words}"] if (words := _memory(one.memory)) else []
        below += [f"+ fd {opened['fd']}: {opened['kind']}, {opened['what']}" for opened in shown["opened"]]
        below += [f"- fd {closed['fd']}: {closed['kind']}, {closed['what']}" for closed in shown["closed"]]
        below += [
            f"{file['path']}: at {file['position']['after']} (was {file['position']['before']}), "
            f"{readable(file['size']['after'])} (were {readable(file['size']['before'])})"
            for file in shown["files"]
        ]
        if below:
            lines += [f"  {shown['pid']} {shown['name']}", *(f"      {line}" for line in below)]
    if words := _memory(found.shared):
        lines.append(f"  shared memory: {words}")
    return lines


def _memory(change: MemoryChange) -> str:
    parts = (
        f"{readable(size)} {word}"
        for size, word in ((change.changed, "changed"), (change.came, "came"), (change.went, "went"))
        if size
    )
    words = ", ".join(parts)
    return words and f"{words}, of {readable(change.after)}"

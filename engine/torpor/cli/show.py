"""`torpor show ID`."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

import click

from torpor.cli.common import (
    command_options,
    console,
    human_age,
    open_store,
    print_json,
    printable,
    snapshot_argument,
    snapshot_json,
    store_option,
)
from torpor.util.sizes import readable

KINDS = {
    "anonymous": "private",
    "file_private": "private, of files",
    "file_shared": "shared, of files",
    "shared": "shared",
}
"""Kinds of memory in words."""

STATES = {"running": "", "stopped": "  (stopped)", "ended": "  (zombie: its parent has not waited for it)"}
"""States of a process in words."""


@click.command("show")
@snapshot_argument
@store_option
@command_options
def command(snapshot: str, store: str | None, as_json: bool) -> None:
    """Show what a snapshot holds, and what a host needs to wake it."""
    from torpor.cli.describe import describe
    from torpor.image import reading

    place = open_store(store)
    info = place.resolve(snapshot)
    # A need that this version does not know prevents a restore, but not showing the snapshot.
    with place.open(info, knows=info.needs) as reader:
        shown = snapshot_json(info)
        if info.kind == "tree":
            shown |= describe(reading.look(reader))
    if as_json:
        print_json(shown)
    else:
        _print(shown)


def _print(shown: dict[str, Any]) -> None:
    from rich.tree import Tree as Branches

    out = console()
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(shown["created_ns"] / 10**9))
    out.print(f"{shown['id']}  {human_age(shown['created_ns'])}, {when}, on {printable(shown['host'])}")
    out.print(f"  {readable(shown['size'])}, of which {readable(shown['written'])} were new to the store")
    for key, value in sorted(shown["tags"].items()):
        out.print(f"  {printable(key)} = {printable(value)}")
    for text in shown["notices"]:
        out.print(f"  note: {printable(text)}")
    if "processes" not in shown:
        out.print(f"  a snapshot of kind {shown['kind']}")
        return
    if shown["taken"]["pause_ns"]:
        out.print(f"  paused for {shown['taken']['pause_ns'] / 10**6:.1f} ms")
    out.print()
    branches: dict[int, Branches] = {}
    roots = []
    for process in shown["processes"]:
        label = f"{process['pid']} {process['name']}{STATES[process['state']]}"
        parent = branches.get(process["parent"])
        branch = parent.add(label) if parent else Branches(label, guide_style="dim")
        if not parent:
            roots.append(branch)
        branches[process["pid"]] = branch
        if process["state"] != "ended":
            for line in _about(process):
                branch.add(line)
    for root in roots:
        out.print(root)
    _print_needs(shown["needs"], out)


def _about(process: dict[str, Any]) -> list[str]:
    lines = [f"{process['program']}  in {process['directory']}"]
    names = Counter(thread["name"] for thread in process["threads"])
    named = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())
    if len(process["threads"]) > 1:
        lines.append(f"{len(process['threads'])} threads: {named}")
    memory = (
        f"{KINDS.get(kind, kind)} {readable(sizes['mapped'])} ({readable(sizes['stored'])} stored)"
        for kind, sizes in process["memory"].items()
    )
    lines.append("memory: " + ", ".join(memory))
    grouped: dict[tuple[str, str], list[int]] = defaultdict(list)
    for descriptor in process["descriptors"]:
        grouped[descriptor["kind"], descriptor["what"]].append(descriptor["fd"])
    lines += [f"fd {', '.join(map(str, fds))}: {kind}, {what}" for (kind, what), fds in grouped.items()]
    return lines


def _processor(needs: dict[str, Any]) -> str:
    """Which processors can wake it."""
    level = f"x86-64-v{needs['level']}"
    if not needs["portable"]:
        more = ", ".join(needs["beyond_level"])
        return f"a processor of the level {level}" + (f" that also has {more}" if more else "")
    also = f" that also has {', '.join(needs['beyond_level'])}" if needs["beyond_level"] else ""
    return f"a processor of the level {level}{also} (started with --portable=x86-64-v{needs['portable']})"


def _print_needs(needs: dict[str, Any], out: Any) -> None:
    out.print("\nA host that wakes it needs")
    out.print(
        f"  {_processor(needs)}, and the register sets in use: "
        f"{', '.join(needs['register_sets']) or 'no special ones'}; {readable(needs['page_size'])} pages"
    )
    out.print(f"  user ids {', '.join(map(str, needs['users']))}")
    if needs["ports"]:
        out.print(f"  free ports: {', '.join(needs['ports'])}")
    if needs["own_filters"]:
        out.print("  root, under no system-call filter (seccomp): programs have filters of their own")
    if needs["shared_filters"]:
        out.print(f"  system-call filters (seccomp) like those that it was under: {needs['shared_filters']}")
    for title, names in (
        ("the same programs and libraries", [file["path"] for file in needs["mapped_files"]]),
        ("the files that were open", needs["open_files"]),
        ("the directories", needs["directories"]),
    ):
        if names:
            out.print(f"  {title}:")
            for name in names:
                out.print(f"    {name}")

"""The house has floors: a module imports only from its own floor or from below (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"torpor": "engine", "torpor.jupyter_ext": "jupyter_ext", "torpor.scheduler_hooks": "scheduler_hooks"}

# From the ground up. A name stands for a module or for a package with all that is in it.
FLOORS = [
    {"_native"},
    {"errors", "inherited", "messages", "ranges", "workers"},
    {"procfs", "cgroups", "remote"},
    {"probe"},
    {"image", "store"},
    {"objects"},
    {"series"},
    {
        "plan",
        "taken",
        "taken_tree",
        "rehearsal",
        "capsule",
        "id_maps",
        "execute",
        "job",
        "proof",
        "refusals",
        "round_trip",
        "may_differ",
        "pid_files",
        "rebuilt",
        "relay",
        "surroundings",
        "walk",
    },
    {"checkpoint", "restore", "run"},
    {"cli", "jupyter_ext", "scheduler_hooks"},
]
# What is kept, and where, knows nothing of live processes.
FORBIDDEN = {"image": {"procfs", "cgroups", "remote"}, "store": {"procfs", "cgroups", "remote"}}


def modules() -> dict[str, Path]:
    """Every module of the package by its name within it; the package's own __init__ is a door, not a floor."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*package.split(".")[1:], *path.relative_to(ROOT / folder).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            if parts and not path.name.endswith("_pb2.py"):
                found[".".join(parts)] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """The first part of every name below `torpor` that a module imports, wherever in it."""
    package = ["torpor", *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
    # What the package's own __init__ offers is the engine's interface: made of its upper floors.
    parts = {full.split(".")[1] for full in names if full.startswith("torpor.")}
    return {"restore" if part in ("Job", "Snapshot", "Stats", "Store") else part for part in parts}


def floor(name: str) -> int:
    own = name.partition(".")[0]
    found = [level for level, names in enumerate(FLOORS) if own in names]
    assert found, f"{own} stands on no floor yet: give it one in FLOORS"
    return found[0]


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_come_from_below(name: str) -> None:
    own = name.partition(".")[0]
    used = imported(name, MODULES[name])
    assert {other for other in used if floor(other) > floor(own)} == set()
    assert used & FORBIDDEN.get(own, set()) == set()

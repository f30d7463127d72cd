"""The house has floors: a module imports only from its own floor or from below (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torpor

ROOT = Path(__file__).parents[3]
PACKAGES = {
    "torpor": "engine",
    "torpor_jupyter": "jupyter_ext",
    "torpor_slurm": "scheduler_hooks",
    "torpor_dask": "scheduler_hooks",
}

# From the ground up. A name stands for a module of `torpor` or for a package with all that is in it.
FLOORS = [
    {"_native"},
    {"arch", "errors", "sets", "util"},
    {"procfs"},
    {"remote"},
    {"metrics", "probe", "processes", "trials"},
    {"image", "store"},
    {"objects"},
    {"dump", "restorer"},
    {"cli", "entry", "torpor_jupyter", "torpor_slurm", "torpor_dask"},
]
# The same within Jupyter's part. `client` stands beside: it asks a server over HTTP.
ROOMS = ["data", "kernels", "server"]
# What is kept, and where, knows nothing of live processes.
FORBIDDEN = {"image": {"procfs", "remote"}, "store": {"procfs", "remote"}}
# The two stories stand side by side. What one needs of the other:
BETWEEN_STORIES = {
    "torpor.dump.proof": {"torpor.restorer.plan", "torpor.restorer.surroundings", "torpor.restorer.validation"},
    "torpor.dump.socket_trial": {"torpor.restorer.round_trip"},  # to compare what was built
    "torpor.restorer.verification": {"torpor.dump.tree_dump"},  # to describe what was built as a checkpoint would
    "torpor.restorer.restore": {"torpor.dump.series"},
    "torpor.restorer.run": {"torpor.dump.checkpoint", "torpor.dump.series"},  # a job can be saved
}


def modules() -> dict[str, Path]:
    """Every module by its name; the __init__ of `torpor` is a door, not a floor."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__")
            if name != "torpor" and not path.name.endswith("_pb2.py"):
                found[name] = path
    return found


def own_part(name: str) -> str:
    """The name that FLOORS has."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "torpor" else first


def names_imported(name: str, path: Path) -> set[str]:
    """The full name of everything that a module imports, wherever in it, also for types only."""
    package = name.split(".")
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
    return names


def imported(name: str, path: Path) -> set[str]:
    """What FLOORS has of every name that a module imports."""
    names = names_imported(name, path)
    # What the package's own __init__ offers is the engine's interface: made of its upper floors.
    parts = {own_part(full) for full in names if full.partition(".")[0] in PACKAGES and full != "torpor"}
    return {"restorer" if part in torpor.__all__ else part for part in parts}


def floor(own: str) -> int:
    found = [level for level, names in enumerate(FLOORS) if own in names]
    assert found, f"{own} stands on no floor yet: give it one in FLOORS"
    return found[0]


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_come_from_below(name: str) -> None:
    own = own_part(name)
    used = imported(name, MODULES[name])
    assert {other for other in used if floor(other) > floor(own)} == set()
    assert used & FORBIDDEN.get(own, set()) == set()


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("torpor_jupyter.")))
def test_rooms_of_jupyter_import_from_below(name: str) -> None:
    own = name.split(".")[1]
    used = {full.split(".")[1] for full in names_imported(name, MODULES[name]) if full.startswith("torpor_jupyter.")}
    assert used <= {own, *(ROOMS[: ROOMS.index(own)] if own in ROOMS else ())}


def needed(name: str) -> set[str]:
    """The modules that a module imports."""
    return {
        module
        for full in names_imported(name, MODULES[name])
        for module in (full, full.rpartition(".")[0])
        if module in MODULES and module != name
    }


def test_the_stories_need_of_each_other_what_is_listed() -> None:
    other = {"torpor.dump.": "torpor.restorer.", "torpor.restorer.": "torpor.dump."}
    found = {
        name: {module for module in needed(name) if module.startswith(theirs)}
        for own, theirs in other.items()
        for name in MODULES
        if name.startswith(own)
    }
    assert {name: modules for name, modules in found.items() if modules} == BETWEEN_STORIES


def test_no_imports_go_in_a_circle() -> None:
    """Take away, again and again, the modules that need none of those that are left."""
    own = ("torpor.", "torpor_jupyter.", "torpor_slurm", "torpor_dask")
    left = {name: needed(name) for name in MODULES if name.startswith(own)}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        for name in free:
            del left[name]
    assert not left, "in a circle, or standing on one"

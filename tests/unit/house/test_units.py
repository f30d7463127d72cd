"""Every module has unit tests: in a file that is named after it, or in one of its room that imports it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.unit.house.test_floors import MODULES

UNIT = Path(__file__).parents[1]
ROOMS = {"torpor": "", "torpor_jupyter": "jupyter", "torpor_slurm": "slurm", "torpor_dask": "dask"}
"""Where in tests/unit the tests of a package are; its folders are there, too."""
FLAT = {"arch/x86_64": "arch"}
ELSEWHERE = {"torpor.cli.session": "two flags, which test_cli.py sets"}
"""Modules without, and why."""


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {path: imports(path) for path in UNIT.rglob("test_*.py")}


def room(name: str) -> Path:
    """The folder of the tests of a module."""
    package, *folders = name.split(".")
    own = "/".join(folders[:-1])
    return UNIT / ROOMS[package] / FLAT.get(own, own)


def is_named_after(test: Path, word: str) -> bool:
    """Whether the name of a file of tests has a name, as whole words."""
    return f"_{word}_" in f"_{test.stem.removeprefix('test_')}_"


def has_tests(name: str) -> bool:
    """Whether a module has tests of its own, or is in a folder that has a file of tests for all of it."""
    own = room(name)
    if any(is_named_after(test, name.rpartition(".")[2].strip("_")) for test in own.glob("test_*.py")):
        return True
    if any(is_named_after(test, own.name) for test in own.parent.glob("test_*.py") if not own.exists()):
        return True
    return any(name in found for test, found in IMPORTS.items() if own in test.parents)


def test_every_module_has_unit_tests() -> None:
    without = {name for name in MODULES if MODULES[name].name != "__init__.py" and not has_tests(name)}
    assert without == ELSEWHERE.keys()


def test_what_has_none_is_seen() -> None:
    assert has_tests("torpor.objects.fds.eventfd") and has_tests("torpor_slurm.step.task_parent")
    assert not has_tests("torpor.objects.fds.nothing") and not has_tests("torpor_dask.nothing.eventfd")
    assert not is_named_after(Path("test_timerfd.py"), "timer")

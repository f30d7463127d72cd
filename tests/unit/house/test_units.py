"""Every module has unit tests: in a file that is named after it, or in one of its room that imports it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.unit.house.test_floors import MODULES

UNIT = Path(__file__).parents[1]
ROOMS = {"torpor": "", "torpor_jupyter": "jupyter", "torpor_slurm": "slurm", "torpor_dask": "dask"}
"""Where in tests/unit the tests of a package are; its folders are there, too."""
FLAT = {"arch/x86_64": "arch"}
ELSEWHERE = {"torpor.cli.session": "two flags, which test_cli.py sets"}
"""Modules without, and why."""


def room(name: str) -> Path:
    """The folder of the tests of a module."""
    package, *folders = name.split(".")
    own = "/".join(folders[:-1])
    return UNIT / ROOMS[package] / FLAT.get(own, own)


def is_named_after(test: Path, name: str) -> bool:
    """Whether the name of a file of tests has that of a module, as whole words."""
    module = name.rpartition(".")[2].strip("_")
    return f"_{module}_" in f"_{test.stem.removeprefix('test_')}_"


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {path: imports(path) for path in UNIT.rglob("*.py") if path.name.startswith("test_")}
TESTED = sorted(name for name in MODULES if MODULES[name].name != "__init__.py")


@pytest.mark.parametrize("name", TESTED)
def test_every_module_has_unit_tests(name: str) -> None:
    own = room(name)
    has = any(is_named_after(test, name) for test in own.glob("test_*.py"))
    has = has or any(name in found for test, found in IMPORTS.items() if own in test.parents)
    assert has != (name in ELSEWHERE), "ELSEWHERE names only what has none"

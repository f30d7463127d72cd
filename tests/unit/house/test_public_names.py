"""The packages above the engine use its public names only, and each of these is documented."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.unit.house.test_floors import MODULES, ROOT, names_imported

PUBLIC = ("torpor", "torpor.cli", "torpor.errors", "torpor.image", "torpor.metrics", "torpor.processes", "torpor.store")
"""The engine's public modules; of each the names in its `__all__`."""
ABOVE = ("torpor_dask", "torpor_jupyter", "torpor_slurm")


def public_names() -> set[str]:
    """Every public name of the engine in full, the modules included."""
    return {*PUBLIC, *(f"{module}.{name}" for module in PUBLIC for name in import_module(module).__all__)}


NAMES = public_names()


def names_used(name: str, path: Path) -> set[str]:
    """What a module imports of the engine, and what it reads from the modules among that."""
    imported = {full for full in names_imported(name, path) if full.partition(".")[0] == "torpor"}
    modules: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    read = {
        f"{modules[node.value.id]}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if modules.get(node.value.id, "") in PUBLIC
    }
    return imported | read


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith(ABOVE)))
def test_the_packages_above_the_engine_use_its_public_names_only(name: str) -> None:
    assert names_used(name, MODULES[name]) - NAMES == set()


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("from torpor import Job, processes\nfrom torpor.store import Store\nprocesses.tree(1)", set()),
        ("import torpor\ntorpor.run([])", set()),
        ("from torpor import procfs", {"torpor.procfs"}),
        ("import torpor.procfs", {"torpor.procfs"}),
        ("def f():\n    from torpor.store.files import readable", {"torpor.store.files.readable"}),
        ("from torpor.errors import failing", {"torpor.errors.failing"}),
        ("import torpor\ntorpor.procfs.stat(1)", {"torpor.procfs"}),
        ("from torpor import processes as p\np.procfs", {"torpor.processes.procfs"}),
    ],
)
def test_a_private_name_is_seen(text: str, private: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert names_used("torpor_slurm.module", path) - NAMES == private


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name: str) -> None:
    module, _, own = name.rpartition(".")
    value: Any = import_module(name) if name in PUBLIC else getattr(import_module(module), own)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)
    page = (ROOT / "docs/api.md").read_text()
    whole = f".. automodule:: {name if name in PUBLIC else module}\n" in page
    assert whole or name == "torpor" or f":: {name}\n" in page

"""`import torpor`: quick, and its names are what they are whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torpor


@pytest.mark.parametrize("name", ["checkpoint", "restore", "run"])
def test_a_function_and_its_module_share_a_name(name: str) -> None:
    script = f"""
import importlib, torpor
module = importlib.import_module("torpor.{name}")
assert callable(torpor.{name})
from torpor import {name}
assert {name} is torpor.{name} is module.{name}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(torpor, name) for name in torpor.__all__)
    with pytest.raises(AttributeError, match="'torpor' has no attribute 'nonsense'"):
        _ = torpor.nonsense


def test_importing_it_loads_nothing_else() -> None:
    script = "import sys, torpor; print([name for name in sys.modules if name.startswith('torpor.')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"

"""`import torpor`: quick, and it has every public name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torpor


def test_every_public_name_is_there() -> None:
    assert all(hasattr(torpor, name) for name in torpor.__all__)
    with pytest.raises(AttributeError, match="'torpor' has no attribute 'nonsense'"):
        _ = torpor.nonsense


def test_importing_it_loads_nothing_else() -> None:
    script = "import sys, torpor; print([name for name in sys.modules if name.startswith('torpor.')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"

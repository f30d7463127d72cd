"""`import torpor`: quick, and it has every public name."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import torpor


def test_every_public_name_is_there() -> None:
    assert all(hasattr(torpor, name) for name in torpor.__all__)
    with pytest.raises(AttributeError, match="'torpor' has no attribute 'nonsense'"):
        _ = torpor.nonsense
    assert set(torpor.__all__) < set(dir(torpor))
    assert re.match(r"\d+\.", torpor.__version__)


def test_its_public_modules_need_no_import_of_their_own() -> None:
    script = "import torpor; print(torpor.errors.NotFound.exit_code, torpor.store.Store, torpor.cli, torpor.image.read)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).startswith("11 <class")


def test_importing_it_loads_nothing_else() -> None:
    script = "import sys, torpor; print([name for name in sys.modules if name.startswith('torpor.')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"

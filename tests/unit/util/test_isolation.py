"""Which options keep a job's packages away, and leave Torpor's own in sight."""

from __future__ import annotations

import site
import sys
from pathlib import Path

import pytest

import torpor
from torpor.util import isolation as module
from torpor.util.isolation import isolation


def test_packages_of_the_user_are_torpors_only_if_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "USER_SITE", str(tmp_path))
    assert isolation() == ["-I"]
    (tmp_path / "torpor-1.0.dist-info").mkdir()
    assert isolation() == ["-E"]
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path))
    assert isolation() == []


def test_torpor_in_pythonpath_is_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/nonexistent:{Path(torpor.__file__).parents[1]}")
    monkeypatch.setattr(site, "getsitepackages", list)
    assert isolation() == []


def test_what_torpor_needs_may_be_found_by_pythonpath_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pip has found it there, and so has not installed it beside Torpor."""
    (tmp_path / "needed").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert isolation() == ["-I"]
    monkeypatch.setattr(module, "NEEDED", (*module.NEEDED, "needed"))
    assert isolation() == []

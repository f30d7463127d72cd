"""Which options keep a job's packages away, and leave Torpor's own in sight."""

from __future__ import annotations

import site
from pathlib import Path

import pytest

import torpor
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

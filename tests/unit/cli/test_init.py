"""`torpor init`: a store in a directory that holds other files is made only if somebody asks for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Torpor
from torpor.errors import StoreError
from torpor.store import Store


def test_a_directory_with_other_files_becomes_a_store_when_asked_for(run: Torpor, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes").touch()
    with pytest.raises(StoreError, match="`torpor init --store`"):
        Store(home).create()
    for _ in range(2):  # it stays as it is
        assert run("init", "--store", str(home)) == (0, f"{home}\n", "")
    Store(home).create()
    assert run("ls", "--store", str(home))[0] == 0
    assert sorted(one.name for one in home.iterdir()) == ["locks", "notes", "packs", "snapshots"]


def test_what_cannot_be_one_is_named(run: Torpor, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code, out, err = run("init", "--store", str(tmp_path))
    assert (code, out) == (12, "")
    assert f"chmod go-w {tmp_path}" in err

"""`torpor import`: a whole snapshot in the store, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import save
from torpor.store import Store


@pytest.fixture
def file(run: Torpor, store: Store, tmp_path: Path) -> Path:
    """An exported snapshot."""
    save(store)
    assert run("export", "latest", str(tmp_path / "file"))[0] == 0
    return tmp_path / "file"


def test_it_keeps_its_id_and_what_is_known_of_it(run: Torpor, store: Store, file: Path, tmp_path: Path) -> None:
    (info,) = store.snapshots()
    told = json.loads(run("import", str(file), "--store", str(tmp_path / "other"), "--json")[1])
    assert (told["id"], told["created_ns"], told["host"]) == (info.id, info.created_ns, info.host)
    assert run("verify", "--all", "--store", str(tmp_path / "other"))[1] == "sound\n"


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_file_adds_nothing(run: Torpor, file: Path, tmp_path: Path, damage: str) -> None:
    content = file.read_bytes()
    changed = {
        "cut": content[: len(content) // 2],
        "changed": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "other": b"no snapshot" * 1000,
    }
    file.chmod(0o600)
    file.write_bytes(changed[damage])
    other = str(tmp_path / "other")
    code, out, err = run("import", str(file), "--store", other)
    assert (code, out) == (31, "")
    assert str(file) in err
    assert run("ls", "-q", "--store", other)[1] == ""
    assert not list(Path(other).rglob("*.pack"))


def test_a_file_that_is_not_there_is_named(run: Torpor, tmp_path: Path) -> None:
    code, _, err = run("import", str(tmp_path / "nothing"))
    assert (code, str(tmp_path / "nothing") in err) == (11, True)

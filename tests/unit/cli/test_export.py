"""`torpor export`: a file that is whole, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli_store import save
from torpor.store import Store


def test_what_is_not_there_makes_no_file(run: Torpor, store: Store, tmp_path: Path) -> None:
    save(store)
    file = tmp_path / "file"
    assert run("export", "nothing", str(file))[:2] == (11, "")
    assert not file.exists()


def test_a_file_that_is_there_stays_as_it_is(run: Torpor, store: Store, tmp_path: Path) -> None:
    save(store)
    file = tmp_path / "file"
    file.write_text("mine")
    code, out, err = run("export", "latest", str(file))
    assert (code, out) == (10, "")
    assert str(file) in err
    assert file.read_text() == "mine"


def test_a_directory_is_no_file(run: Torpor, store: Store, tmp_path: Path) -> None:
    save(store)
    assert run("export", "latest", str(tmp_path))[0] == 2


def test_an_interrupt_leaves_no_file(
    run: Torpor, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    save(store)
    monkeypatch.setattr(Store, "export_file", interrupted)
    code, out, err = run("export", "latest", str(tmp_path / "file"))
    assert (code, out, "no file was written" in err) == (130, "", True)

"""`torpor config`: every setting, and where it comes from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Torpor
from torpor.cli.config import HEADINGS
from torpor.store import Store
from torpor.util import settings


def test_every_setting_has_its_row(run: Torpor, store: Store) -> None:
    code, out, err = run("config")
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert all(heading in header for heading in HEADINGS)
    assert [row.split()[0] for row in rows if row[:1].strip()][: len(settings.SETTINGS)] == list(settings.SETTINGS)
    assert out.splitlines()[-1] == f"Files: {', '.join(settings.files())}"


def test_the_store_is_the_one_that_is_used(
    run: Torpor, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def shown() -> dict[str, str]:
        found: dict[str, str] = json.loads(run("config", "--json")[1])["settings"]["store"]
        return found

    assert shown() == {"value": store.path, "from": "$TORPOR_STORE"}
    monkeypatch.delenv("TORPOR_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert shown() == {"value": os.path.join(tmp_path, "torpor"), "from": settings.DEFAULT}


def test_a_value_cannot_drive_a_terminal(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_STORE", "/tmp/\x1b[31m")
    assert "\x1b" not in run("config")[1]


def test_a_file_that_is_wrong_is_named(run: Torpor, configured: Path) -> None:
    configured.write_text("stoer = '/data'\n")
    code, out, err = run("config")
    assert (code != 0, out) == (True, "")
    assert str(configured) in err and "stoer" in err

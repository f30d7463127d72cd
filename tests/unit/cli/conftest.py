"""The command line in this process, beside a store of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torpor import cli
from torpor.store import Store
from torpor.util import settings

Torpor = Callable[..., tuple[int, str, str]]
"""Runs the command line: exit code, stdout, stderr."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that commands use. It is not there yet."""
    monkeypatch.setenv("TORPOR_STORE", str(tmp_path / "store"))
    return Store()


@pytest.fixture
def run(store: Store, capsys: pytest.CaptureFixture[str]) -> Torpor:
    """Run the command line in this process."""

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's configuration file, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "torpor" / "config.toml"
    file.parent.mkdir()
    settings.read.cache_clear()
    yield file
    settings.read.cache_clear()

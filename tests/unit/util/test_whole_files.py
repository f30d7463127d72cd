"""A file is replaced whole or not at all, and nothing else is left in its directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from torpor.util.whole_files import write_whole


def test_a_new_file_is_private_and_an_old_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, "väl")
    assert path.read_bytes() == "väl".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat().st_ino
    write_whole(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert path.stat().st_ino != before, "it was written in place: a reader could see half of it"
    assert os.listdir(tmp_path) == ["state"]


def test_a_script_can_be_made_executable(tmp_path: Path) -> None:
    write_whole(tmp_path / "srun", "#!/bin/sh\n", 0o700)
    assert os.access(tmp_path / "srun", os.X_OK)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_old_file_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "state"
    write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_the_file_is_synced_before_its_name_and_the_directory_after(tmp_path: Path, disk_steps: list[str]) -> None:
    """Else a crash of the host could leave an empty file, or the old one although the call had returned."""
    write_whole(tmp_path / "state", "text")
    assert disk_steps == ["file", "rename", "directory"]


def test_a_path_without_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "state", "text")

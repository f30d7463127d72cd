"""Files are opened by their names only if they are the ones that a tree has."""

from __future__ import annotations

import mmap
import os
import socket
from pathlib import Path

import pytest

from torpor import procfs
from torpor.objects.paths import same_file
from torpor.objects.paths.same_file import is_mapped, key_of, open_mapped, open_same

PAGE = 4096


def test_a_name_that_leads_elsewhere_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, secret = tmp_path / "file", tmp_path / "secret"
    path.write_text("mine")
    secret.write_text("root")
    key = key_of(path.stat())
    with os.fdopen(open_same(path.as_posix(), key)) as file:
        assert file.read() == "mine"
    path.unlink()
    path.symlink_to(secret)
    flags = []
    plain = os.open

    def opened(path: str, how: int) -> int:
        flags.append(how)
        return plain(path, how)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(FileNotFoundError, match="another file has its name"):
        open_same(path.as_posix(), key)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="another file has its name"):
        open_same(path.as_posix(), key_of(path.stat()))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path.as_posix())
        with pytest.raises(FileNotFoundError, match="another file has its name"):
            open_same(path.as_posix(), key_of(path.stat()))
    assert all(how & os.O_PATH for how in flags), "none was opened for reading"


def test_a_mapped_file_has_the_device_of_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        mine = next(one for one in procfs.mappings(os.getpid()) if one.name == os.fsencode(path))
        os.close(open_mapped(mine))
        # As if stat(2) showed another device than maps, as on btrfs and on some overlays.
        elsewhere = mine._replace(device=b"ff:1f")
        assert not is_mapped(file.fileno(), elsewhere)
        with pytest.raises(FileNotFoundError, match="another file has its name"):
            open_mapped(elsewhere)
        monkeypatch.setattr(same_file, "_device_in_maps", lambda _: same_file.device_of(elsewhere))
        assert is_mapped(file.fileno(), elsewhere)
        assert not is_mapped(file.fileno(), elsewhere._replace(inode=mine.inode + 1))
    same_file._known.clear()


def test_an_own_mapping_shows_the_device_of_maps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file:
        assert same_file._device_in_maps(file.fileno()) is None, "an empty file cannot be mapped"
        path.write_bytes(b"x")
        assert same_file._device_in_maps(file.fileno()) is not None

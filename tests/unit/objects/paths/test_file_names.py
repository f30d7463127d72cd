"""The names that a file has beside the one that is gone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from torpor.objects.paths.file_names import another_name, is_silly, is_used, lasting_name


def test_another_name_is_found_by_its_inode(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"it")
    status = first.stat()
    assert lasting_name(str(first), status) == str(first)
    os.link(first, second)
    first.unlink()
    first.write_bytes(b"another one")
    gone = f"{first} (deleted)"
    assert another_name(gone, status.st_dev, status.st_ino) == str(second)
    assert another_name(gone, status.st_dev + 1, status.st_ino) is None
    assert lasting_name(gone, second.stat()) == str(second)
    second.unlink()
    assert another_name(gone, status.st_dev, status.st_ino) is None


def test_who_has_a_file_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"it")
    status = path.stat()
    with open(path, "rb"):  # this process does not count
        assert not is_used(status.st_dev, status.st_ino)
    with open(path, "rb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=file):
        assert is_used(status.st_dev, status.st_ino)
    assert not is_used(status.st_dev, status.st_ino)


def test_a_name_from_the_file_system_for_a_removed_file_is_none() -> None:
    for name in ("/a/.nfs000000000000abcd00000001", "/.fuse_hidden0000abcd00000001 (deleted)"):
        assert is_silly(name) and is_silly(os.fsencode(name))
    for name in ("/a/.nfs", "/a/.nfs0000/file", "/a/x.nfs000000000000abcd00000001", "/.fuse_hidden"):
        assert not is_silly(name)

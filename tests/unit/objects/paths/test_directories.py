"""Directories that were removed while somebody was in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torpor.image.image_pb2 import Inode, Process, Tree
from torpor.objects.paths import directories
from torpor.objects.paths.opener import Openers


def test_a_removed_directory_is_made_beside_what_another_restore_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On shared storage another node's process has our PID, and its directory is there while ours is made."""
    (tmp_path / "gone").mkdir()
    (tmp_path / f".torpor-{os.getpid()}").mkdir()
    monkeypatch.setattr(directories, "_SPARE", ())
    monkeypatch.setattr(directories, "_places", lambda path: [os.path.dirname(path)])
    inode = Inode(removed=True, mode=0o40700, uid=os.getuid(), gid=os.getgid())
    opener = Openers(Tree()).process(Process())
    fd = directories.enter(os.fsencode(tmp_path / "gone"), inode, opener, made={})
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert {one.name for one in tmp_path.iterdir()} == {"gone", f".torpor-{os.getpid()}"}

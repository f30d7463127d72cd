"""The file systems of an image's paths: kept by their mount points, and named when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.image.image_pb2 import Tree
from torpor.objects.process import mounts


def test_only_mounts_that_paths_are_on_are_kept() -> None:
    image = Tree()
    image.processes.add(cwd=b"/proc/self")
    image.descriptions.add().file.path = b"/dev/shm/a file"
    image.descriptions.add().directory.path = b"/"
    image.descriptions.add().file.path = b"/a file of the root's own"
    mounts.describe(image, os.getpid())
    kept = {mount.path: mount.filesystem for mount in image.mounts}
    assert kept.pop(b"/proc") == "proc" and kept.pop(b"/dev/shm", "tmpfs") == "tmpfs"
    assert b"/" not in kept and b"" not in kept


def test_a_file_system_that_is_not_mounted_is_named_where_something_of_it_is_missing(tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    image = Tree()
    image.mounts.add(path=bytes(there), filesystem="nfs4", source="server:/data")
    image.mounts.add(path=bytes(gone), filesystem="nfs4", source="server:/home")
    image.mounts.add(path=b"/proc", filesystem="proc", source="proc")
    image.processes.add(cwd=bytes(there))
    image.files.add(path=b"/proc/what is missing on a file system that is mounted")
    image.files.add(path=bytes(gone / "lib/it.so"))
    (told,) = mounts.validate(image)
    assert told.subject == f"the file system {gone} (nfs4 of server:/home)"
    image.descriptions.add().file.path = bytes(there / "a file")
    assert len(list(mounts.validate(image))) == 2

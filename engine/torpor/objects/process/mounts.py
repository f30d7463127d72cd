"""The file systems that the files of a tree are on, so that a restore can name one that is not mounted.

Documented in: proc_pid_mountinfo(5). A restore mounts nothing: that is the administrator's task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from torpor import procfs
from torpor.errors import Reason
from torpor.image.image_pb2 import Tree
from torpor.objects.part import EnteredTree, TreePart


class Mounts(TreePart[None, None, None]):
    """The mounts that the image's paths are on."""

    def grab(self, tree: EnteredTree) -> None:
        """Nothing: they are read when all paths are known."""

    def describe(self, grabbed: None, image: Tree, own_pids: Mapping[int, int], root: int) -> None:
        """As the first process sees them."""
        describe(image, root)

    def validate(self, image: Tree) -> Iterator[Reason]:
        """Name the file systems that are not mounted here."""
        return validate(image)

    def host(self) -> None:
        """No calls."""


def describe(image: Tree, pid: int) -> None:
    """Write the mounts of the image's paths, as the process `pid` sees them; without ``/``, which always exists."""
    mounts = _mounts(pid)
    used = {home for path in _paths(image) if (home := _mount_point_of(path, mounts)) not in (b"", b"/")}
    for point in sorted(used):
        filesystem, source = mounts[point]
        image.mounts.add(path=point, filesystem=filesystem, source=source)


def validate(image: Tree) -> Iterator[Reason]:
    """Name the file systems that are not mounted here and whose files are missing."""
    if not image.mounts:
        return
    there = _mounts(os.getpid())
    then = {mount.path: ("", "") for mount in image.mounts}
    for mount in image.mounts:
        mine = (path for path in _paths(image) if _mount_point_of(path, then) == mount.path)
        if mount.path not in there and any(not os.path.lexists(path) for path in mine):
            what = f"{mount.filesystem} of {mount.source}" if mount.source.strip("/") else mount.filesystem
            yield Reason(
                f"the file system {os.fsdecode(mount.path)} ({what})",
                "it is not mounted here",
                "mount it, or have it mounted",
            )


def _paths(image: Tree) -> Iterator[bytes]:
    yield from (file.path for file in image.files)
    yield from (process.cwd for process in image.processes if process.cwd)
    for description in image.descriptions:
        kind = description.WhichOneof("kind")
        if kind in ("file", "directory", "fifo"):
            yield getattr(description, kind).path


def _mounts(pid: int) -> dict[bytes, tuple[str, str]]:
    """The type and the source of each mount, by its mount point."""
    return {
        mount.point: (mount.filesystem.decode(errors="replace"), mount.source.decode(errors="replace"))
        for mount in procfs.mounts(pid)
    }


def _mount_point_of(path: bytes, mounts: dict[bytes, tuple[str, str]]) -> bytes:
    """The mount point that a path is on; empty if it is not on one of these."""
    while path not in mounts:
        if path in (b"", b"/"):
            return b""
        path = os.path.dirname(path)
    return path

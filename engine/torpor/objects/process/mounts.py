"""Which file systems the files of a tree lie on, so that one that is not mounted is told by its name.

Documented in: proc_pid_mountinfo(5). Nothing is mounted at a restore: that is the host's to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor import procfs
from torpor.errors import Reason
from torpor.image.image_pb2 import Tree


def describe(image: Tree, pid: int) -> None:
    """Note the mount of every path in an image, as the process `pid` sees it; that of ``/`` is everywhere."""
    mounts = _mounts(pid)
    used = {home for path in _paths(image) if (home := _home(path, mounts)) not in (b"", b"/")}
    for point in sorted(used):
        filesystem, source = mounts[point]
        image.mounts.add(path=point, filesystem=filesystem, source=source)


def check(image: Tree) -> Iterator[Reason]:
    """Say which file systems are not mounted here, while files on them are missing."""
    if not image.mounts:
        return
    there = _mounts(os.getpid())
    then = {mount.path: ("", "") for mount in image.mounts}
    for mount in image.mounts:
        mine = (path for path in _paths(image) if _home(path, then) == mount.path)
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
    """The type and the source of what is mounted, by the mount point."""
    return {
        mount.point: (mount.filesystem.decode(errors="replace"), mount.source.decode(errors="replace"))
        for mount in procfs.mounts(pid)
    }


def _home(path: bytes, mounts: dict[bytes, tuple[str, str]]) -> bytes:
    """The mount point that a path lies below; empty: none of these."""
    while path not in mounts:
        if path in (b"", b"/"):
            return b""
        path = os.path.dirname(path)
    return path

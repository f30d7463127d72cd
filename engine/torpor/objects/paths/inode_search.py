"""Search for a name of an inode if the kernel shows none: of a watched inode, or of an open file that lost its name.

First look at the directories, open and mapped files, arguments and environments of the tree's processes, and at all
parent directories. Then look below these, the nearest first, but only on the file systems in question, at up to `MOST`
names each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Set
from contextlib import suppress
from pathlib import Path

from torpor import procfs
from torpor.objects.kind import GrabbedDescriptors

MOST = 20_000
"""The most names to look at below each place."""
MOST_OF_ALL = 10 * MOST
Key = tuple[int, int]
"""Device and inode number."""

_last: dict[Key, str] = {}
"""Where an inode was found last: in a series of checkpoints it stays there, and is searched for once."""


def find(
    wanted: Collection[Key],
    tree: GrabbedDescriptors,
    ask: Callable[[Key, Collection[str]], str] | None = None,
    most: int | None = None,
) -> dict[Key, str]:
    """Find names of inodes. The result has those that were found.

    Args:
        wanted: the inodes.
        tree: the processes that use them.
        ask: may know a name; gets the places near the tree, and is called before directories are searched.
        most: the most names to look at; None: `MOST_OF_ALL`.
    """
    found = {key: path for key in wanted if (path := last_name(key))}
    missing = set(wanted) - found.keys()
    if not missing:
        return found
    near = _near(tree)
    found |= _meet(near, missing)
    if ask:
        places = set(near)
        found |= {key: path for key in missing - found.keys() if (path := ask(key, places))}
    found |= _search(missing - found.keys(), near, most or MOST_OF_ALL)
    if len(_last) >= MOST:
        _last.clear()
    _last.update(found)
    return found


def last_name(key: Key) -> str:
    """Where an inode was found last, if it still is there; else empty."""
    path = _last.get(key, "")
    return path if path and key_of(path) == key else ""


def key_of(path: str) -> Key | None:
    """The inode that a path leads to; None if this user sees none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _near(tree: GrabbedDescriptors) -> list[str]:
    """Where to search: directories and files that the tree uses, and their parents."""
    found: dict[str, None] = {}
    pids = list(map(tree.asked, tree.pids))
    for pid in pids:
        with suppress(OSError):
            here = os.readlink(f"/proc/{pid}/cwd")
            found[here] = None
            for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]:
                for part in {word, word.rpartition(b"=")[2]}:  # --directory=PATH
                    if part and len(part) < 4096:
                        found[os.path.normpath(os.path.join(here, os.fsdecode(part)))] = None
    for open_file in tree.open_files:
        if _may_be_near(open_file.link):
            found[open_file.link] = None
            found[os.path.dirname(open_file.link)] = None
    for pid in pids:
        with suppress(OSError):
            for mapping in procfs.mappings(pid):
                if mapping.name.startswith(b"/"):
                    found[os.path.dirname(os.fsdecode(mapping.name))] = None
            for setting in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                for value in setting.partition(b"=")[2].split(b":"):
                    if value.startswith(b"/") and len(value) < 4096:
                        found[os.path.normpath(os.fsdecode(value))] = None
    above = (str(parent) for path in list(found) for parent in Path(path).parents)
    return [path for path in found if path != "/"] + sorted(set(above), key=len, reverse=True)


def _may_be_near(path: str) -> bool:
    """Whether a file that is open says where others may be: not a device, and not what /proc shows."""
    return path.startswith("/dev/shm/") or (path.startswith("/") and not path.startswith(("/dev/", "/proc/")))


def _meet(paths: Iterable[str], wanted: Set[Key]) -> dict[Key, str]:
    """Those of `paths` that lead to a wanted inode."""
    found: dict[Key, str] = {}
    for path in paths if wanted else ():
        if (key := key_of(path)) in wanted and key is not None:
            found.setdefault(key, path)
    return found


def _search(wanted: Set[Key], near: Iterable[str], most: int) -> dict[Key, str]:
    """Search for inodes below some paths, on the inodes' file systems: first those that lie there."""
    found: dict[Key, str] = {}
    inodes = {inode for _, inode in wanted}
    devices = {device for device, _ in wanted}
    seen = set[str]()
    left = most
    for root in sorted(near, key=lambda path: (key_of(path) or (0, 0))[0] not in devices) if wanted else ():
        level, until = [root], left - MOST
        while level and left > max(until, 0) and len(found) < len(wanted):
            below: list[str] = []
            for directory in level:
                if directory in seen or left <= max(until, 0):
                    continue
                seen.add(directory)
                with suppress(OSError), os.scandir(directory) as entries:
                    for entry in entries:
                        left -= 1
                        is_directory = entry.is_dir(follow_symlinks=False)
                        key = key_of(entry.path) if is_directory or entry.inode() in inodes else None
                        if key is not None and key in wanted:
                            found.setdefault(key, entry.path)
                        # Another file system may be mounted there, with this one again below it; that is rare, and
                        # ignored.
                        if is_directory and key is not None and key[0] in devices:
                            below.append(entry.path)
            level = below
    return found

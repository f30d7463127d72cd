"""Looks for a name of an inode, where the kernel tells none: of what is watched, of an open file that lost its own.

First what the tree's processes are in, have open or mapped, were given as arguments or in their environment, and all
directories above; then, on the file systems in question only, what lies below these, the nearest first, `MOST` names in
each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Set
from contextlib import suppress
from pathlib import Path

from torpor import procfs
from torpor.objects.kind import GrabbedDescriptors

MOST = 20_000
"""Names that are looked at below each of the places where an inode may have one."""
MOST_OF_ALL = 10 * MOST
Key = tuple[int, int]
"""Device and inode number."""

_last: dict[Key, str] = {}
"""Where an inode was found last: in a series of saves it stays where it is, and is looked for once."""


def find(
    wanted: Collection[Key], tree: GrabbedDescriptors, ask: Callable[[Key, Collection[str]], str] | None = None
) -> dict[Key, str]:
    """Names of inodes, those that were found.

    Args:
        wanted: the inodes.
        tree: who has to do with them.
        ask: who may know a name, told the places near to the tree; asked before names are looked through.
    """
    found = {key: path for key in wanted if (path := _last.get(key)) and key_of(path) == key}
    missing = set(wanted) - found.keys()
    if not missing:
        return found
    near = _near(tree)
    found |= _meet(near, missing)
    if ask:
        places = set(near)
        found |= {key: path for key in missing - found.keys() if (path := ask(key, places))}
    found |= _search(missing - found.keys(), near)
    if len(_last) >= MOST:
        _last.clear()
    _last.update(found)
    return found


def key_of(path: str) -> Key | None:
    """The inode that a path leads to; None: to none that this user sees."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _near(tree: GrabbedDescriptors) -> list[str]:
    """Where to look: directories, and files, that the tree has something to do with, and those above them."""
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
    for held in tree.held:
        if held.link.startswith("/") and not held.link.startswith(("/dev/", "/proc/")):
            found[held.link] = None
            found[os.path.dirname(held.link)] = None
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


def _meet(paths: Iterable[str], wanted: Set[Key]) -> dict[Key, str]:
    """Those of some paths that lead to what is wanted."""
    found: dict[Key, str] = {}
    for path in paths if wanted else ():
        if (key := key_of(path)) in wanted and key is not None:
            found.setdefault(key, path)
    return found


def _search(wanted: Set[Key], near: Iterable[str]) -> dict[Key, str]:
    """Names of inodes below some paths, the nearest first, on the file systems that they lie on."""
    found: dict[Key, str] = {}
    inodes = {inode for _, inode in wanted}
    devices = {device for device, _ in wanted}
    seen = set[str]()
    left = MOST_OF_ALL
    for root in near if wanted else ():
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
                        # Another file system may be mounted there, and below it this one once more: few do that.
                        if is_directory and key is not None and key[0] in devices:
                            below.append(entry.path)
            level = below
    return found

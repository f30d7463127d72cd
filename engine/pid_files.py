"""Files by which processes tell each other that one of them lives: lock files and PID files that name a PID of a job.

In a PID namespace of its own the job's PIDs are not those that others see: who looks whether the PID in such a file
lives takes the file for stale. A wake says so. It looks at a bounded number of names and into small files, the user's
own only, and leaves out what it cannot look at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Final

from torpor.image import image_pb2 as pb
from torpor.objects import locks

PLACES: Final = ("/tmp", "/var/lock", "/run/user/{uid}")
SUFFIXES: Final = (".pid", ".lock", ".lck")
NAMES: Final = ("lock", "SingletonLock")
"""Symbolic links of Mozilla and Chromium. Emacs' begin with ``.#``."""
DIRECTORIES: Final = 32
ENTRIES: Final = 2000
"""Of a directory."""
LOOKED_AT: Final = 200
"""Files, all in all."""
SIZE: Final = 512
"""Bytes: what holds more is something else."""
SHOWN: Final = 4

_NUMBER = re.compile(rb"(?<![0-9A-Za-z_])[1-9][0-9]*(?![0-9A-Za-z_])")


def warnings(image: pb.Tree, places: tuple[str, ...] = PLACES) -> Iterator[str]:
    """Say which files name a PID of a tree that is to live in a PID namespace of its own.

    Args:
        image: the tree, before it is woken.
        places: directories that are looked into, besides those that it is in and has files open in.
    """
    if found := list(named(image, places)):
        shown = ", ".join(f"{path} names {pid}" for path, pid in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield f"it is in a capsule, and others, who do not see its PIDs, may take locks for stale: {shown}{more}"


def named(image: pb.Tree, places: tuple[str, ...] = PLACES) -> Iterator[tuple[str, int]]:
    """The paths of files that name a PID of a tree, and the PID."""
    pids = {b"%d" % process.pid for process in image.processes}
    leased = {os.fsdecode(path) for path in locks.leased(image)}  # to open one breaks the lease
    seen: set[tuple[int, int]] = set()
    for path in islice(_candidates(image, places), LOOKED_AT):
        with suppress(OSError):
            status = os.lstat(path)
            key = status.st_dev, status.st_ino
            if status.st_uid == os.geteuid() and path not in leased and key not in seen:
                seen.add(key)
                if found := next((word for word in _NUMBER.findall(_text(path, status)) if word in pids), None):
                    yield path, int(found)


def _candidates(image: pb.Tree, places: tuple[str, ...]) -> Iterator[str]:
    """What may be such a file: what the tree has locked, and what is called like one."""
    own = [one for one in image.processes if not one.root and [*one.credentials.uids[:1]] == [os.geteuid()]]
    locked, beside = [], []
    for entry in chain.from_iterable(process.fds for process in own):
        description = image.descriptions[entry.description]
        if description.file.path:
            path = os.fsdecode(description.file.path)
            beside.append(os.path.dirname(path))
            if entry.locks or description.locks:
                locked.append(path)
    yield from dict.fromkeys(locked)
    directories = [os.fsdecode(process.cwd) for process in own]
    directories += [place.format(uid=os.geteuid()) for place in places]
    for directory in islice(dict.fromkeys(directories + beside), DIRECTORIES):
        with suppress(OSError), os.scandir(directory) as entries:
            for one in islice(entries, ENTRIES):
                if one.name.endswith(SUFFIXES) or one.name.startswith(".#") or one.name in NAMES:
                    yield one.path


def _text(path: str, status: os.stat_result) -> bytes:
    """What a symbolic link or a small file holds; nothing of others. Raises OSError."""
    if stat.S_ISLNK(status.st_mode):
        return os.fsencode(os.readlink(path))
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= SIZE:
        return b""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        return os.read(fd, SIZE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)

"""Find lock files and PID files that name a PID of a job.

Outside of the job's PID namespace its PIDs mean nothing: a process that checks whether the PID in such a file is alive
takes the file for stale. A restore warns of that. It reads a bounded number of small files, only those of the tree's
users and with their rights, and skips what it cannot read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Final

from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.objects.fds import locks
from torpor.objects.paths.opener import Openers

PLACES: Final = ("/tmp", "/run/lock", "/var/lock", "/run/user/{uid}")
SUFFIXES: Final = (".pid", ".lock", ".lck")
NAMES: Final = ("lock", "SingletonLock")
"""Symbolic links of Mozilla and Chromium. Emacs' begin with ``.#``."""
DIRECTORIES: Final = 32
ENTRIES: Final = 2000
"""The most entries to look at in a directory."""
LOOKED_AT: Final = 200
"""The most files to look at in all."""
SIZE: Final = 512
"""Bytes: a larger file is not a lock or PID file."""
SHOWN: Final = 4

_NUMBER = re.compile(rb"(?<![0-9A-Za-z_])[1-9][0-9]*(?![0-9A-Za-z_])")


def warnings(image: pb.Tree, places: tuple[str, ...] = PLACES) -> Iterator[str]:
    """Warn of files that name a PID of a tree that will live in its own PID namespace.

    Args:
        image: the tree, before it runs.
        places: directories to search besides the tree's current directories and those of its open files.
    """
    if found := list(named(image, places)):
        shown = ", ".join(f"{path} names {pid}" for path, pid in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        why = "programs outside do not see its PIDs, and may take its lock files for stale"
        yield f"it is in a capsule: {why}: {shown}{more}"


def named(image: pb.Tree, places: tuple[str, ...] = PLACES) -> Iterator[tuple[str, int]]:
    """Yield the paths of files that name a PID of a tree, with the PID."""
    pids = {b"%d" % process.pid for process in image.processes}
    leased = set(locks.leased(image))  # opening a leased file breaks the lease
    seen: set[tuple[int, int]] = set()
    with Openers(image) as openers:
        owners = [_Owner(image, uid, found, openers, places) for uid, found in _by_user(image).items()]
        candidates = ((owner, path) for owner in owners for path in owner.candidates())
        for owner, path in islice(candidates, LOOKED_AT):
            with suppress(OSError):
                text = b"" if path in leased else owner.text(path, seen)
                if found := next((word for word in _NUMBER.findall(text) if word in pids), None):
                    yield os.fsdecode(path), int(found)


def _by_user(image: pb.Tree) -> dict[int, list[pb.Process]]:
    """Return the processes without a root directory of their own, by filesystem uid; root sees those of all users."""
    found: dict[int, list[pb.Process]] = {}
    for process in image.processes:
        uids = process.credentials.uids
        if uids and not process.root and (procfs.is_root() or uids[0] == os.geteuid()):
            found.setdefault(uids[-1], []).append(process)
    return found


class _Owner:
    """A user of the tree. Only that user's files are read, with that user's rights."""

    def __init__(
        self, image: pb.Tree, uid: int, processes: list[pb.Process], openers: Openers, places: tuple[str, ...]
    ) -> None:
        self._image, self._uid, self._processes = image, uid, processes
        self._opener = openers.process(processes[0])
        self._places = [os.fsencode(place.format(uid=uid)) for place in places]

    def candidates(self) -> Iterator[bytes]:
        """Yield paths that may be such files: files that the processes have locked, and files with such names."""
        locked, beside = [], []
        for entry in chain.from_iterable(process.fds for process in self._processes):
            description = self._image.descriptions[entry.description]
            if path := description.file.path:
                beside.append(os.path.dirname(path))
                if entry.locks or description.locks:
                    locked.append(path)
        yield from dict.fromkeys(locked)
        directories = [*(process.cwd for process in self._processes), *self._places, *beside]
        for directory in islice(dict.fromkeys(directories), DIRECTORIES):
            with suppress(OSError):
                yield from self._in(directory)

    def text(self, path: bytes, seen: set[tuple[int, int]]) -> bytes:
        """Read a symbolic link or a small file; empty if it belongs to others or was seen before. Raises OSError."""
        fd = self._opener.lookup(path, follow=False)
        try:
            status = os.fstat(fd)
            known = (status.st_dev, status.st_ino)
            if status.st_uid != self._uid or known in seen:
                return b""
            seen.add(known)
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(b"", dir_fd=fd)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= SIZE:
                return b""
            opened = self._opener.reopened(os.dup(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME)
        finally:
            os.close(fd)
        try:
            return os.read(opened, SIZE)
        finally:
            os.close(opened)

    def _in(self, directory: bytes) -> Iterator[bytes]:
        fd = self._opener.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as entries:
                for one in islice(entries, ENTRIES):
                    if one.name.endswith(SUFFIXES) or one.name.startswith(".#") or one.name in NAMES:
                        yield os.path.join(directory, os.fsencode(one.name))
        finally:
            os.close(fd)

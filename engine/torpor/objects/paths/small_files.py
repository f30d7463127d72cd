"""Small files that the job itself has made: every image has them, since they may be gone at the wake.

Examples are a compiler's temporary file, a database's journal, a result that is renamed when it is complete, the
counters of a Java virtual machine. Without such a file a snapshot could not be woken once the file is removed. So the
image has the content of a file that

* is open or mapped, as a program or library too, and has a name;
* belongs to the user whose job it is;
* is open for writing, mapped for writing, or was made or changed since the job began, whatever its modification time
  says: since its first process started, however often it was woken since then;
* has at most `limit` bytes: $TORPOR_SMALL_FILES, 4 MiB if that is not set; 0 keeps none.

Its file system does not matter, except that files of /dev/shm are always kept. It is copied under the freeze, so that
it matches the memory: four files of the maximal size lengthen the pause by about 10 ms, and no more are taken. A file
with a lease is left out, since opening it would break the lease. They are restored like bundled files
(`torpor.objects.paths.bundle`): a missing one is made again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from blake3 import blake3

from torpor import procfs
from torpor.errors import NO_ROOM
from torpor.image.image_pb2 import SharedMemory
from torpor.objects.paths import file_attributes, file_content
from torpor.objects.paths.file_content import Buffers, Content
from torpor.objects.paths.file_names import OF_KERNEL
from torpor.objects.paths.fingerprints import File, note_stat
from torpor.objects.paths.same_file import key_of, open_same
from torpor.objects.process import daemons
from torpor.procfs import Mapping
from torpor.util import settings

Attribute: TypeAlias = SharedMemory.Attribute

_LAG_NS = 100_000_000
"""Nanoseconds by which the time of a file that a job makes may lie before the job's start: it is that of the last tick
(fs/inode.c, current_time())."""
_older: set[tuple[int, bytes, bytes, int]] = set()
"""Programs and libraries that are older than a job, by its beginning, their names, devices and inodes: in a series, a
network is not asked for them again under each freeze.
"""
_MOST_OLDER = 100_000
_AT_ONCE = 4
"""The most files of the largest size."""


def limit() -> int:
    """The size of the largest file to keep, in bytes, from the settings. Raises SettingError if it is not a size."""
    return int(settings.get("small-files").value)


@dataclass
class Copy(Content):
    """The content of a file at the freeze."""

    name: bytes = field(kw_only=True)
    """Its path in the image."""
    status: os.stat_result = field(kw_only=True)
    attributes: list[Attribute] = field(kw_only=True)
    """Its extended attributes."""

    def note(self, file: File) -> None:
        """Write the hash of the content to the image."""
        note_stat(file, self.status)
        file.content.digest, file.content.whole = self._digest, True

    @cached_property
    def _digest(self) -> bytes:
        content = bytearray(self.size)
        for at, piece in self.pieces.items():
            content[at : at + len(piece)] = piece
        return blake3(content).digest()


class SmallFiles:
    """The small files of a tree, each once."""

    def __init__(self, root: int) -> None:
        """Prepare for the tree below the process `root`."""
        self._limit = limit()
        self._left = self._limit * _AT_ONCE
        self.uid = int(procfs.status(procfs.read(f"/proc/{root}/status"))[b"Uid"].split()[1])
        self.began_ns = daemons.began_ns(root)
        self.since_ns = self.began_ns - _LAG_NS
        """Nothing that the job has made is older."""
        self._copies: dict[tuple[int, int], Copy] = {}

    def __iter__(self) -> Iterator[Copy]:
        return iter(self._copies.values())

    def find(self, device: int, inode: int) -> Copy | None:
        """The copy of a file, if there is one."""
        return self._copies.get((device, inode))

    def take_mapped(self, maps: Iterable[Mapping]) -> None:
        """Copy files in a process's mappings that must be kept."""
        for mapping in maps:
            known = self.began_ns, mapping.name, mapping.device, mapping.inode
            if not mapping.name.startswith(b"/") or known in _older:
                continue
            path = os.fsdecode(mapping.name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            if status.st_ino == mapping.inode:
                self.take(path, path, status, written=mapping.shared and mapping.writable)
                if not mapping.shared and not self._made(status):
                    if len(_older) >= _MOST_OLDER:
                        _older.clear()
                    _older.add(known)

    def _made(self, status: os.stat_result) -> bool:
        """Whether a file was made or changed since the job began. tar and unzip give new files an old st_mtime."""
        return status.st_ctime_ns >= self.since_ns

    def take(self, path: str, reached: str, status: os.stat_result, *, written: bool) -> None:
        """Copy a file if it must be kept.

        Args:
            path: its name.
            reached: a name that leads to it, even if another file has `path` now.
            status: its status.
            written: whether the tree may write to it.
        """
        wanted = stat.S_ISREG(status.st_mode) and status.st_nlink and status.st_uid == self.uid
        if not wanted or not (written or self._made(status)) or OF_KERNEL.match(os.fsencode(path)):
            return
        if status.st_size > min(self._limit, self._left) or not self._limit or key_of(status) in self._copies:
            return
        try:
            fd = open_same(reached, key_of(status))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            return  # not readable, or another: like any other file, it must be there at the restore
        copy = Copy(name=os.fsencode(path), status=os.fstat(fd), attributes=file_attributes.extended(fd))
        file_content.copy(fd, copy, Buffers())  # all of them together are small
        self._copies[key_of(status)] = copy
        self._left -= copy.size

"""Which mapped files a tree has not written since it was frozen: the content of a file is hashed when it runs again.

A write by a mapping changes a file's time only if the page was clean: then it is a fault, at which the kernel sets the
time (mm/memory.c, fault_dirty_shared_page). So until the hash is computed, writable mappings of files are watched by a
userfaultfd, as memory is in a series (remote/written.py). Where the kernel has no such watch (before 6.7), files
count as written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from torpor import procfs
from torpor.objects.memory import shared_memory
from torpor.objects.paths.fingerprints import WHOLE_MAPPED
from torpor.objects.paths.same_file import Key, key_of
from torpor.objects.paths.small_files import SmallFiles
from torpor.procfs import Mapping as Mapped
from torpor.remote.written import WriteWatch
from torpor.util.ranges import Range

Files: TypeAlias = Mapping[Mapped, Key]
"""Shared mappings of a process, with their files."""


@dataclass(frozen=True)
class _Watched:
    watch: WriteWatch
    ranges: Sequence[Range]
    alone: bool
    """Whether the watch is only for files."""


class FileWatches:
    """The watches of a tree's processes. Call `files_of` and `begin` under the freeze, and `close` at the end."""

    def __init__(self) -> None:
        self._files: dict[int, Files] = {}
        self._watched: dict[int, _Watched] = {}

    def files_of(self, pid: int, maps: Iterable[Mapped], small: SmallFiles | None) -> bool:
        """Note the files that a process has mapped and that will be hashed. Returns whether some must be watched."""
        found: dict[Mapped, Key] = {}
        for mapping in maps:
            if mapping.shared and mapping.name.startswith(b"/") and not shared_memory.is_memory(mapping):
                with suppress(OSError):
                    status = os.stat(mapping.name)
                    wanted = stat.S_ISREG(status.st_mode) and status.st_ino == mapping.inode
                    if wanted and status.st_size <= WHOLE_MAPPED and not (small and small.find(*key_of(status))):
                        found[mapping] = key_of(status)
        self._files[pid] = found
        return any(mapping.writable for mapping in found)

    def begin(self, pid: int, watch: WriteWatch, *, alone: bool) -> None:
        """Watch a process until `close`; the watch is closed then if it is there for the files `alone`."""
        ranges = [(mapping.start, mapping.end) for mapping in self._files[pid] if mapping.writable]
        watch.begin_shared(pid, ranges)
        self._watched[pid] = _Watched(watch, ranges, alone)

    def unwritten(self) -> set[Key]:
        """The files that no process of the tree has written by a mapping since `begin`."""
        written: set[Key] = set()
        for pid, files in self._files.items():
            try:
                unwritten = self._unwritten(pid)
                there = {(m.start, m.end): m.inode for m in procfs.mappings(pid) if m.shared and m.writable}
            except OSError:  # it has ended
                written.update(files.values())
                continue
            elsewhere = {inode for here, inode in there.items() if here not in unwritten}
            for mapping, file in files.items():
                here = mapping.start, mapping.end
                gone = mapping.writable and (here not in unwritten or there.get(here) != mapping.inode)
                if gone or mapping.inode in elsewhere:
                    written.add(file)
        return {file for files in self._files.values() for file in files.values()} - written

    def _unwritten(self, pid: int) -> set[Range]:
        """The watched mappings of a process that nobody has written to."""
        one = self._watched.get(pid)
        return {here for here in one.ranges if one.watch.is_unwritten(pid, here)} if one else set()

    def close(self) -> None:
        """Stop watching. May be called again."""
        while self._watched:
            _, one = self._watched.popitem()
            if one.alone:
                one.watch.close()
            else:
                one.watch.end_shared(one.ranges)

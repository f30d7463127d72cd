"""Memory that several mappings or processes may share: MAP_SHARED without a file on disk, memfd, /dev/shm.

Kept: content, size, name, memfd seals. It is known by the device and inode numbers that maps and fstat show, so two
processes that map the same memory do so again. Restored as a memfd, except a named file of a tmpfs, which is used
where it is still there and made anew where it is not.

A snapshot by fork does not cover it, so its content is copied under the freeze.

Documented in: memfd_create(2), shm_overview(7), mmap(2).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from torpor.image import image_pb2 as pb
from torpor.objects import vmas
from torpor.objects.memory_files import MemoryFile
from torpor.procfs import PAGE, Mapping
from torpor.remote import memory

_MEMFD = b"/memfd:"
_SHM = b"/dev/shm/"
_AT_ONCE = 1 << 30  # a read moves 2 GiB at most


def is_memory(mapping: Mapping) -> bool:
    """Whether a shared mapping's content lives in memory only, and so must be in the image."""
    return mapping.shared and mapping.inode != 0 and (vmas.is_deleted(mapping) or mapping.name.startswith(_SHM))


def kind_of(name: bytes) -> tuple[int, bytes]:
    """The kind of shared memory by its name in maps, and the name to keep."""
    if not name.endswith(vmas.DELETED):
        return pb.SharedMemory.TMPFS, name
    name = name[: -len(vmas.DELETED)]
    if name.startswith(_MEMFD):
        return pb.SharedMemory.MEMFD, name[len(_MEMFD) :]
    if name == b"/dev/zero":
        return pb.SharedMemory.ANONYMOUS, b""
    return pb.SharedMemory.UNLINKED, name


@dataclass
class Segment:
    """One piece of shared memory of the tree."""

    name: bytes
    """As in maps."""
    size: int = 0
    pieces: dict[int, mmap.mmap] = field(default_factory=dict)
    """Content by offset; what is in none is zero."""
    whole: bool = False
    """Whether the pieces are all of it, and not just what is mapped."""
    seals: int = 0
    mode: int = 0o600
    index: int = -1
    """In the image, once it is described."""


Key = tuple[int, int]
"""Device and inode number of the memory."""


def key_of(mapping: Mapping) -> Key:
    """The identity of what is mapped."""
    major, minor = mapping.device.split(b":")
    return os.makedev(int(major, 16), int(minor, 16)), mapping.inode


class SharedMemory:
    """The shared memory of a tree: grabbed under the freeze, described afterwards."""

    def __init__(self) -> None:
        self.segments: dict[Key, Segment] = {}

    def grab_file(self, file: MemoryFile) -> None:
        """Copy a file in memory that is open, mapped or not. Holes are not read: a mapping's would be filled by it."""
        segment = Segment(file.link, file.stat.st_size, whole=True, seals=file.seals, mode=file.stat.st_mode & 0o7777)
        fd = file.open()
        try:
            segment.size = os.fstat(fd).st_size
            end = 0
            while (start := _seek(fd, end, os.SEEK_DATA)) is not None:
                end = os.lseek(fd, start, os.SEEK_HOLE)
                segment.pieces[start] = content = mmap.mmap(-1, end - start)
                view = memoryview(content)
                done = 0
                while done < len(view):
                    done += os.preadv(fd, [view[done : done + _AT_ONCE]], start + done)
        finally:
            os.close(fd)
        self.segments[file.stat.st_dev, file.stat.st_ino] = segment

    def grab_mapped(self, pid: int, maps: Iterable[Mapping]) -> None:
        """Copy what a process maps, except what was copied already."""
        for mapping in maps:
            if not is_memory(mapping):
                continue
            segment = self.segments.setdefault(key_of(mapping), Segment(mapping.name))
            size = mapping.end - mapping.start
            known = segment.pieces.get(mapping.offset)
            if segment.whole or (known is not None and len(known) >= size):
                continue
            segment.size = max(segment.size, mapping.offset + size)
            segment.pieces[mapping.offset] = content = mmap.mmap(-1, size)
            _read_mapped(pid, mapping, memoryview(content))

    def describe(self, image: pb.Tree) -> None:
        """Give each segment its place in the image; its pages follow."""
        for key, segment in self.segments.items():
            segment.index = len(image.shared)
            kind, name = kind_of(segment.name)
            image.shared.add(
                kind=kind,
                name=name,
                size=segment.size,
                seals=segment.seals,
                dev=key[0],
                ino=key[1],
                mode=segment.mode,
            )

    def index(self, device: int, inode: int) -> int:
        """The index in the image of a segment."""
        return self.segments[device, inode].index


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing further
            raise
        return None


def _read_mapped(pid: int, mapping: Mapping, view: memoryview) -> None:
    """Read a mapping; what lies behind the end of a file mapped larger than it is stays zero (SIGBUS for the tree)."""
    try:
        memory.read_into(pid, mapping.start, view)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        size = _file_size(mapping)
        if not 0 <= size - mapping.offset < len(view):
            raise
        memory.read_into(pid, mapping.start, view[: (size - mapping.offset + PAGE - 1) // PAGE * PAGE])


def _file_size(mapping: Mapping) -> int:
    try:
        return os.stat(mapping.name).st_size
    except FileNotFoundError:
        return -1

"""The content of a file without its holes: finding it, copying it, and writing it from an image to a new file.

Documented in: lseek(2), SEEK_DATA; sendfile(2).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torpor.errors import ImageDamaged
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.procfs import PAGE
from torpor.store import SnapshotReader
from torpor.util.ranges import Range

SQLITE = b"SQLite format 3\0"
"""The first bytes of an SQLite database (https://www.sqlite.org/fileformat.html)."""
AT_ONCE = 1 << 30
"""Bytes per read: one read transfers at most 2 GiB."""
_COMPARED_AT_ONCE = 1 << 20
_LARGEST = (1 << 63) - 1
"""The largest off_t."""


@dataclass
class Content:
    """The content of a file or a piece of memory at the freeze."""

    size: int = 0
    pieces: dict[int, memoryview] = field(default_factory=dict)
    """By offset; the rest is zero."""

    def room(self, runs: Sequence[Range], buffers: Buffers) -> memoryview:
        """A buffer for the content of ranges of offsets, one after the other."""
        total = sum(end - start for start, end in runs)
        content = memoryview(buffers.take(total) if total else b"")
        position = 0
        for start, end in runs:
            self.pieces[start] = content[position : position + end - start]
            position += end - start
        return content


class Buffers:
    """Buffers for what is copied under the freeze: in memory while there is room, then in files without a name."""

    def __init__(self, room: int = _LARGEST, directory: str | os.PathLike[str] = ".") -> None:
        """
        Args:
            room: the bytes of memory that may be used.
            directory: where the files are made.
        """
        self._room = room
        self._directory = directory
        self.on_disk = 0
        """Bytes for which there was no memory."""

    def reserve(self, size: int) -> None:
        """Leave so many bytes of memory to others."""
        self._room -= size

    def take(self, size: int) -> mmap.mmap:
        """A buffer. Raises OSError: the disk is full."""
        if size > self._room:
            import tempfile  # noqa: PLC0415  hardly any save needs it, and it takes long to import

            self.on_disk += size
            with tempfile.TemporaryFile(dir=self._directory) as file:
                # With a hole, a write to a full disk would be SIGBUS.
                os.posix_fallocate(file.fileno(), 0, size)
                return mmap.mmap(file.fileno(), size)
        self._room -= size
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # the kernel has no huge pages; with them page faults take a twentieth of the time
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory


def seek(fd: int, offset: int, whence: int) -> int | None:
    """Where the next data or hole begins (lseek(2), SEEK_DATA); None if there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:  # none up to the end of the file
            raise
        return None


def data(fd: int, start: int, end: int) -> Iterator[Range]:
    """The parts of a range of a file that are not holes."""
    while start < end and (found := seek(fd, start, os.SEEK_DATA)) is not None and found < end:
        start = min(os.lseek(fd, found, os.SEEK_HOLE), end)
        yield found, start


def copy(fd: int, into: Content, buffers: Buffers) -> None:
    """Copy a whole file, and close it."""
    try:
        into.size = os.fstat(fd).st_size
        runs = list(data(fd, 0, into.size))
        into.room(runs, buffers)
        for start, _ in runs:
            view, done = into.pieces[start], 0
            # A read of 0 bytes: a process outside of the tree has truncated the file meanwhile.
            while done < len(view) and (read := os.preadv(fd, [view[done : done + AT_ONCE]], start + done)):
                done += read
    finally:
        os.close(fd)


def _pieces(pages: pb.PageTable, total: int, reader: SnapshotReader) -> Iterator[tuple[int, int, int, int]]:
    """For each run of pages its offset in the file and size, the pack's descriptor and the offset there."""
    for start, count, block, skip in pieces(pages):
        pack, offset, length = reader.block(block)
        size = count * PAGE
        if skip * PAGE + size > length or start * PAGE >= total:
            raise ImageDamaged(f"page {start} of shared memory or a file lies in no block of the snapshot")
        yield start * PAGE, min(size, total - start * PAGE), reader.pack_fd(pack), offset + skip * PAGE


def make_room(fd: int, total: int) -> None:
    """Make a new file one hole of `total` bytes, which an image says. Raises OSError: no file can be so large."""
    if total > _LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    os.ftruncate(fd, total)


def fill(fd: int, pages: pb.PageTable, total: int, reader: SnapshotReader) -> None:
    """Fill a file of `total` bytes, which is one hole.

    Raises:
        OSError: there is no room.
        ImageDamaged: the content is missing.
    """
    for at, size, pack, offset in _pieces(pages, total, reader):
        os.lseek(fd, at, os.SEEK_SET)
        done = 0
        while done < size:
            moved = os.sendfile(fd, pack, offset + done, min(size - done, AT_ONCE))
            if moved == 0:
                raise ImageDamaged("a pack became shorter while it was read")
            done += moved


def same(fd: int, pages: pb.PageTable, total: int, reader: SnapshotReader) -> bool:
    """Whether a file has exactly the content of an image."""
    if os.fstat(fd).st_size != total:
        return False
    at = 0
    for start, size, pack, offset in _pieces(pages, total, reader):
        if not _is_zero(fd, at, start) or os.pread(fd, size, start) != os.pread(pack, size, offset):
            return False
        at = start + size
    return _is_zero(fd, at, total)


def _is_zero(fd: int, start: int, end: int) -> bool:
    for first, last in data(fd, start, end):
        for at in range(first, last, _COMPARED_AT_ONCE):
            content = os.pread(fd, min(_COMPARED_AT_ONCE, last - at), at)
            if content.count(0) < len(content):
                return False
    return True


def is_sqlite(fd: int) -> bool:
    """Whether a file, open in any way, is an SQLite database."""
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(reader, len(SQLITE), 0) == SQLITE
    finally:
        os.close(reader)

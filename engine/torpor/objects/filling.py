"""What a file holds, holes left out: looked at where it lies, and written from an image into a new one.

Documented in: lseek(2), SEEK_DATA; sendfile(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from torpor.errors import ImageDamaged
from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE
from torpor.ranges import Range
from torpor.store import SnapshotReader

AT_ONCE = 1 << 30
"""Bytes: a read moves 2 GiB at most."""
_COMPARED_AT_ONCE = 1 << 20


def seek(fd: int, offset: int, whence: int) -> int | None:
    """Where data or a hole begins (lseek(2), SEEK_DATA); None: nowhere further on."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing further
            raise
        return None


def data(fd: int, start: int, end: int) -> Iterator[Range]:
    """What is no hole of a part of a file."""
    while start < end and (found := seek(fd, start, os.SEEK_DATA)) is not None and found < end:
        start = min(os.lseek(fd, found, os.SEEK_HOLE), end)
        yield found, start


def _pieces(pages: pb.PageTable, total: int, reader: SnapshotReader) -> Iterator[tuple[int, int, int, int]]:
    """Of each run of pages: where it goes, its size, the pack's descriptor and the place there."""
    for start, count, block in zip(pages.starts, pages.counts, pages.blocks, strict=True):
        pack, offset, length = reader.block(block)
        size = count * PAGE
        if size > length or start * PAGE >= total:
            raise ImageDamaged(f"page {start} of shared memory or a file lies in no block of the snapshot")
        yield start * PAGE, min(size, total - start * PAGE), reader.pack_fd(pack), offset


def fill(fd: int, pages: pb.PageTable, total: int, reader: SnapshotReader) -> None:
    """Give a file of `total` bytes, all holes, its content.

    Raises:
        OSError: there is no room.
        ImageDamaged: the content is not there.
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
    """Whether a file holds what an image says, and no more."""
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

"""Space in packs: which ranges manifests refer to, and how to give the rest back to the file system.

A hole keeps the size of a file and all offsets in it; it reads as zeros (fallocate(2), FALLOC_FL_PUNCH_HOLE).
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Iterator
from itertools import compress
from operator import gt
from typing import Final

KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
SECTOR: Final = 512
"""The unit of st_blocks (stat(2)), in bytes."""
NO_HOLES: Final = {errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems that cannot punch holes, such as NFS below 4.2."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Extents:
    """Ranges of a file, which may overlap. They take at most twice the memory that their union needs."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._patience = 1024

    def add(self, start: int, end: int) -> None:
        """Add a range, which must not be empty."""
        self._starts.append(start)
        self._ends.append(end)
        if len(self._starts) > self._patience:
            self._join()
            self._patience = max(1024, 2 * len(self._starts))

    def _join(self) -> None:
        """Sort the ranges and merge those that overlap or touch.

        Starts and ends are sorted separately. There is a gap behind the k-th end if no more than k ranges have started
        there.
        """
        starts, ends = sorted(self._starts), sorted(self._ends)
        apart = list(map(gt, starts[1:], ends))
        self._starts = array("Q", [*starts[:1], *compress(starts[1:], apart)])
        self._ends = array("Q", [*compress(ends, apart), *ends[-1:]])

    def gaps(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges between `begin` and `end` that are in none of these."""
        self._join()
        for start, stop in zip([begin, *self._ends], [*self._starts, end], strict=True):
            if start < stop:
                yield start, stop


def data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range of a file that are not holes. Moves the descriptor's file position."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # no data up to the end of the file
        if start < end:
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            yield start, stop
            start = stop


def punch(fd: int, start: int, end: int) -> None:
    """Punch a hole in a file. Raises OSError."""
    if _fallocate(fd, KEEP_SIZE | PUNCH_HOLE, start, end - start):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def disk_bytes(status: os.stat_result) -> int:
    """The disk space that a file takes, in bytes: holes take none."""
    return status.st_blocks * SECTOR

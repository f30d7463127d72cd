"""Space within packs: which of it manifests name, and how the rest is given back to the file system.

A hole keeps the size of a file and all offsets in it; what is read there is zero (fallocate(2), FALLOC_FL_PUNCH_HOLE).
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
"""The unit of st_blocks (stat(2)), bytes."""
NO_HOLES: Final = {errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system says that cannot punch holes: NFS below 4.2, for one."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Extents:
    """Ranges of a file that may overlap, in memory no more than twice what their union needs."""

    def __init__(self) -> None:
        """Have none."""
        self._starts = array("Q")
        self._ends = array("Q")
        self._patience = 1024

    def add(self, start: int, end: int) -> None:
        """Take in a range, which is not empty."""
        self._starts.append(start)
        self._ends.append(end)
        if len(self._starts) > self._patience:
            self._join()
            self._patience = max(1024, 2 * len(self._starts))

    def _join(self) -> None:
        """Sort them, and make one of those that overlap or touch.

        All starts and all ends are sorted each by itself: behind the k-th end is a gap when no more than k ranges
        have started there.
        """
        starts, ends = sorted(self._starts), sorted(self._ends)
        apart = list(map(gt, starts[1:], ends))
        self._starts = array("Q", [*starts[:1], *compress(starts[1:], apart)])
        self._ends = array("Q", [*compress(ends, apart), *ends[-1:]])

    def gaps(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """What lies between `begin` and `end` and in none of them."""
        self._join()
        for start, stop in zip([begin, *self._ends], [*self._starts, end], strict=True):
            if start < stop:
                yield start, stop


def data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range of a file that are no holes. Moves the position of the descriptor."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # there is none up to the end of the file
        if start < end:
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            yield start, stop
            start = stop


def punch(fd: int, start: int, end: int) -> None:
    """Make a hole of a range of a file. Raises OSError."""
    if _fallocate(fd, KEEP_SIZE | PUNCH_HOLE, start, end - start):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def held(status: os.stat_result) -> int:
    """Bytes of the disk that a file takes: its holes take none."""
    return status.st_blocks * SECTOR

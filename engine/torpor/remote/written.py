"""Which pages a process has written since the last look.

A userfaultfd with WP_ASYNC (6.7) write-protects pages. At the first write the kernel itself lifts the protection and
notes the write in the page table; no thread has to wait. PAGEMAP_SCAN reads the notes and protects the pages again in
one walk. Writes that the kernel makes for the process (such as read(2) into a buffer) are noted too.

The dumper holds the descriptor. When it is closed, or the dumper dies, the kernel removes all protection. Pages that
are not populated are not protected (a reservation of 64 GiB would get page tables for all of it): they count as written
once they are populated.

If a protected page is dropped from a mapping of a file or of huge pages (MADV_DONTNEED, or the file became shorter), a
marker stays in the page table (mm/memory.c, zap_install_uffd_wp_if_needed, 5.19).

- Mappings of files are not watched, and count as written: a program that installs a guard region there
  (MADV_GUARD_INSTALL, since 6.15) would never come back from that call. For the kernel drops the pages until there are
  none, and takes the markers for pages (mm/madvise.c, madvise_guard_install).
- In huge pages there are no guard regions. There the kernel reports the marker as a page that is swapped out and was
  not written, but there is no page. So the protection is removed from all that is reported as swapped out, which
  removes the markers too.

The first write to a protected huge page splits it (mm/memory.c, wp_huge_pmd); later khugepaged may build a huge page
again. So memory that is written often would have no huge pages. Therefore a huge page that was written stays
unprotected for the next looks, at which it counts as written. Then it is protected once, to see whether it still is.

Documented in: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import reduce
from typing import NamedTuple

from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.remote.userfaultfd import WRITE_PROTECTED, begin, register, unregister
from torpor.util.ranges import Range, intersection, subtract, union

_UFFDIO_WRITEPROTECT = 0xC018AA06  # include/uapi/linux/userfaultfd.h
_WRITEPROTECT = struct.Struct("<3Q")  # start, length, mode
_WP_UNPOPULATED = 1 << 13
_WP_ASYNC = 1 << 15

_HUGE = 2 << 20
"""The size of the smallest huge page, in bytes."""
_GAP = 512 * PAGE
"""Bytes that the kernel scans in the time that one more call takes."""
SPARED_LOOKS = 4
"""The number of looks for which a written huge page stays unprotected."""


class Private(NamedTuple):
    """A whole private mapping of a process."""

    start: int
    end: int
    backed: bool = False
    """Whether it maps a file or huge pages, so that a dropped page leaves a marker."""
    huge: bool = False
    """Whether it maps huge pages of hugetlbfs."""

    @property
    def watched(self) -> bool:
        """Whether its writes are noted."""
        return self.huge or not self.backed


class WriteWatch:
    """Watches for writes to the private memory of one process. The owner must close it."""

    def __init__(self, fd: int) -> None:
        """Take ownership of a new userfaultfd of the process.

        Raises:
            OSError: EINVAL if the kernel has no asynchronous write protection; the descriptor is closed.
        """
        self._fd = fd
        self._spared: deque[list[Range]] = deque([[]] * SPARED_LOOKS, SPARED_LOOKS)
        """The huge pages that were left unprotected, at each of the last looks."""
        begin(fd, _WP_ASYNC | _WP_UNPOPULATED)

    @classmethod
    def made(cls, fd: int) -> WriteWatch | None:
        """One of a new userfaultfd; None where the kernel has no asynchronous write protection."""
        try:
            return cls(fd)
        except OSError:
            return None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. May be called again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def begin(self, pid: int, mappings: Sequence[Private]) -> bool:
        """Start to watch a frozen process.

        Return False if another program watches it already: our protection would hide writes from that program.

        Args:
            pid: the process.
            mappings: its private mappings, by address.

        Raises:
            OSError: ESRCH if the process is gone.
        """
        with memory.PageMap(pid) as pages:
            if any(pages.is_watched(one.start) for one in mappings):
                return False
            for one in mappings:
                if one.watched:
                    self._protect(pages, one.start, one.end)
        return True

    def begin_shared(self, pid: int, mappings: Sequence[Range]) -> None:
        """Watch shared mappings of files of a frozen process, too. Those that cannot be watched count as written.

        Raises:
            OSError: ESRCH if the process is gone.
        """
        with memory.PageMap(pid) as pages:
            for start, end in mappings:
                if not pages.is_watched(start) and register(self._fd, start, end, WRITE_PROTECTED):
                    pages.protect(start, end)

    def is_unwritten(self, pid: int, mapping: Range) -> bool:
        """Whether nobody has written to a mapping since `begin_shared`. Raises OSError if the process is gone."""
        with memory.PageMap(pid) as pages:
            return self._fd >= 0 and pages.unprotected(*mapping) == []

    def end_shared(self, mappings: Sequence[Range]) -> None:
        """Stop watching shared mappings, and no others."""
        for start, end in mappings:
            with suppress(OSError):  # it is gone
                unregister(self._fd, start, end)

    def look(self, pid: int, mappings: Sequence[Private], *, again: bool) -> list[Range]:
        """Find the private pages of the frozen process that may have been written since the last look.

        Mappings of files, and those that are new since then, count as written, and so may addresses without a page.

        Args:
            pid: the process.
            mappings: its private mappings, by address.
            again: reset the notes, and watch new mappings too.

        Raises:
            OSError: ESRCH if the process is gone or has executed another program.
        """
        found: list[Range] = [(one.start, one.end) for one in mappings if not one.watched]
        watched: list[Range] = []
        huge: list[Range] = []
        with memory.PageMap(pid) as pages:
            alone: list[Private] = []
            for run in _runs([one for one in mappings if one.watched]):
                written = _written_together(pages, run, again=again) if len(run) > 2 else None
                if written is None:
                    alone += run
                    continue
                found += written
                watched += ((one.start, one.end) for one in run if one.huge)
            for start, end, _, of_huge in alone:
                large = end - start >= _HUGE
                written = (
                    pages.unprotected(start, end) if large else pages.written(start, end, again=again, backed=of_huge)
                )
                if written is None:  # new
                    found.append((start, end))
                    if again:
                        self._protect(pages, start, end)
                    continue
                if again and large:
                    for first, last in _near(written):
                        found += pages.written(first, last, again=True, huge=False, backed=of_huge) or ()
                    # What is huge is left, also if it has just become so, or is not huge any more.
                    written = pages.unprotected(start, end) or []
                    huge += (one for first, last in _near(written) for one in pages.huge(first, last))
                found += written
                if of_huge:
                    watched.append((start, end))
            watched.sort()
            for first, last in union(watched):
                if not pages.has_zeros_or_swapped(first, last):
                    continue
                found += intersection(pages.zeros(first, last), watched)
                for start, end in intersection(pages.swapped(first, last), watched):
                    self._forget(start, end)
                    found.append((start, end))
            if again:
                self._protect_huge(pages, huge)
        return found

    def _protect_huge(self, pages: memory.PageMap, written: list[Range]) -> None:
        """Protect those written huge pages that were left unprotected for long enough."""
        due = reduce(intersection, self._spared, written)
        for start, end in due:
            pages.written(start, end, again=True)
        self._spared.append(subtract(written, due))

    def _forget(self, start: int, end: int) -> None:
        """Remove the protection from a part of a watched mapping, and with it the markers of dropped pages."""
        fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, end - start, 0)))

    def _protect(self, pages: memory.PageMap, start: int, end: int) -> None:
        """Watch a mapping. If the kernel does not allow it, the mapping counts as new at each look."""
        if register(self._fd, start, end, WRITE_PROTECTED):
            pages.written(start, end, again=True)


def _near(ranges: Sequence[Range]) -> Iterator[Range]:
    """Join ranges, by address, that are so close to each other that one scan of all takes less time than two."""
    first = last = 0
    for start, end in ranges:
        if start - last > _GAP:
            if last:
                yield first, last
            first = start
        last = end
    if last:
        yield first, last


def _runs(mappings: Sequence[Private]) -> Iterator[list[Private]]:
    """Group adjacent mappings that are too small for huge pages. Any other mapping is a group of its own."""
    run: list[Private] = []
    for one in mappings:
        if run and (run[-1].end != one.start or one.end - one.start >= _HUGE or run[0].end - run[0].start >= _HUGE):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _written_together(pages: memory.PageMap, run: Sequence[Private], *, again: bool) -> list[Range] | None:
    """Find the written pages of adjacent mappings by two calls for all: a Jupyter kernel has hundreds of small ones.

    Returns:
        None if a mapping is not watched. There PAGEMAP_SCAN fails, and what it found before is lost. So the first scan
        does not protect anything.
    """
    start, end = run[0].start, run[-1].end
    of_huge = any(one.huge for one in run)
    if not again:
        return pages.written(start, end, again=False, backed=of_huge)
    left = pages.unprotected(start, end)
    if left is None:
        return None
    return [one for first, last in _near(left) for one in pages.written(first, last, again=True, backed=of_huge) or ()]

"""Which pages a process has written since the last look.

A userfaultfd with WP_ASYNC (6.7) write-protects pages so that the kernel itself lifts the protection at the first write
and notes it in the page table; nobody waits for anybody. PAGEMAP_SCAN reads the notes and protects again in one walk.
Writes that the kernel makes for the process, read(2) into a buffer say, are noted too.

The descriptor belongs to whoever looks; when it is closed, or its holder dies, the kernel takes everything back. Pages
that are not there yet are not protected (a reservation of 64 GiB would get page tables for all of it): they count as
written once they are there.

A protected page that is dropped from a mapping of a file or of huge pages (MADV_DONTNEED, or the file became shorter)
leaves a marker in the page table (mm/memory.c, zap_install_uffd_wp_if_needed, 5.19). It is shown as a page that is
swapped out and was not written, which it is not: there is no page. So the protection of all that looks like that is
taken away, and the markers go with it; what was really swapped out counts as written.

The first write to a protected huge page makes small pages of it (mm/memory.c, wp_huge_pmd), of which the kernel makes a
huge one again when it comes round to that (khugepaged). So what is written again and again would have none. A huge page
that was written is therefore left as it is for the next looks, at which it counts as written, too; then it is protected
once more, to see whether it still is.

Documented in: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

from torpor.remote import memory
from torpor.util.ranges import Range, intersection, subtract, union

UFFD_USER_MODE_ONLY = 1
"""What an ordinary user may ask for (vm.unprivileged_userfaultfd is 0 by default)."""
OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY

# include/uapi/linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_API = struct.Struct("<3Q")  # api, features, ioctls
_REGISTER = struct.Struct("<4Q")  # start, length, mode, ioctls
_WRITEPROTECT = struct.Struct("<3Q")  # start, length, mode
_UFFD_API = 0xAA
_WP_UNPOPULATED = 1 << 13
_WP_ASYNC = 1 << 15
_MODE_WP = 1 << 1

_HUGE = 2 << 20
"""Bytes of the smallest huge page."""
SPARED_LOOKS = 4
"""For how many looks a huge page that was written is not protected."""


class Private(NamedTuple):
    """A private mapping of a process, whole."""

    start: int
    end: int
    backed: bool
    """Whether a file or huge pages are behind it, so that a dropped page leaves a marker."""


class WriteWatch:
    """Watches the private memory of one process. To be closed."""

    def __init__(self, fd: int) -> None:
        """Take over a userfaultfd of the process, fresh from userfaultfd(2).

        Raises:
            OSError: EINVAL where the kernel has no asynchronous write protection; the descriptor is closed.
        """
        self._fd = fd
        self._spared: deque[list[Range]] = deque([[]] * SPARED_LOOKS, SPARED_LOOKS)
        """The huge pages that were not protected again, at each of the last looks."""
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, _WP_ASYNC | _WP_UNPOPULATED, 0)))

    def __del__(self) -> None:
        """Close, if nobody has."""
        self.close()

    def close(self) -> None:
        """Stop watching. May be called again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def begin(self, pid: int, mappings: Sequence[Range]) -> bool:
        """Watch a frozen process from now on, unless somebody else does: whom each look of ours would make blind.

        Args:
            pid: the process.
            mappings: its private mappings, by address.

        Raises:
            OSError: ESRCH when the process is gone.
        """
        with memory.PageMap(pid) as pages:
            if any(pages.is_watched(start) for start, _ in mappings):
                return False
            for start, end in mappings:
                self._protect(pages, start, end)
        return True

    def look(self, pid: int, mappings: Sequence[Private], *, again: bool) -> list[Range]:
        """What may have been written since the last look, of the frozen process's own pages.

        A mapping that is new since then counts as written.

        Args:
            pid: the process.
            mappings: its private mappings, by address.
            again: forget what was written, and watch what is new.

        Raises:
            OSError: ESRCH when the process is gone or has become another program.
        """
        found: list[Range] = []
        watched: list[Range] = []
        huge: list[Range] = []
        with memory.PageMap(pid) as pages:
            for start, end, backed in mappings:
                large = end - start >= _HUGE
                written = pages.written(start, end, again=again and not large)
                if written is None:  # new
                    found.append((start, end))
                    if again:
                        self._protect(pages, start, end)
                    continue
                found += written
                if again and large:
                    # What becomes huge, small or written in between is in one of the three, or not protected.
                    huge += (spared := pages.huge(start, end))
                    found += spared
                    found += pages.written(start, end, again=True, huge=False) or ()
                if backed:
                    watched.append((start, end))
            for first, last in union(watched):
                found += intersection(pages.zeros(first, last), watched)
                for start, end in intersection(pages.swapped(first, last), watched):
                    self._forget(start, end)
                    found.append((start, end))
            if again:
                self._protect_huge(pages, huge)
        return found

    def _protect_huge(self, pages: memory.PageMap, written: list[Range]) -> None:
        """Protect those of the written huge pages that were spared for long enough."""
        due = reduce(intersection, self._spared, written)
        for start, end in due:
            pages.written(start, end, again=True)
        self._spared.append(subtract(written, due))

    def _forget(self, start: int, end: int) -> None:
        """Take the protection from a part of a watched mapping, and with it the markers of pages that were dropped."""
        fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, end - start, 0)))

    def _protect(self, pages: memory.PageMap, start: int, end: int) -> None:
        """Watch a mapping; one that the kernel does not let be watched is new at each look."""
        try:
            fcntl.ioctl(self._fd, _UFFDIO_REGISTER, bytearray(_REGISTER.pack(start, end - start, _MODE_WP, 0)))
        except OSError as error:
            if error.errno == errno.ENOMEM:  # the memory is gone that it belongs to (fs/userfaultfd.c, mmget_not_zero)
                raise ProcessLookupError(errno.ESRCH, "it has become another program") from error
            if error.errno not in (errno.EINVAL, errno.EBUSY, errno.EPERM):
                raise
            return
        pages.written(start, end, again=True)

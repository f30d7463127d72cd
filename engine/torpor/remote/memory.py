"""Another process's memory: reading, writing, and which of its pages are its own."""

from __future__ import annotations

import errno
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain

from torpor.arch.x86_64 import NR, TASK_SIZE
from torpor.errors import about
from torpor.procfs import PAGE
from torpor.remote.sys import Words, syscall
from torpor.util.ranges import intersection, union

IOV_MAX = 1024


def read(pid: int, address: int, size: int) -> bytes:
    """Read memory.

    Raises:
        OSError: EFAULT when a part of it is not readable, ESRCH when the process is gone.
    """
    buffer = bytearray(size)
    read_into(pid, address, memoryview(buffer))
    return bytes(buffer)


def read_into(pid: int, address: int, buffer: memoryview) -> None:
    """Read memory into `buffer`, all of it."""
    read_ranges(pid, [(address, len(buffer))], buffer)


def read_ranges(pid: int, ranges: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    """Read (address, size) ranges, one after the other, into `buffer`, with as few calls as can be."""
    position = 0
    for begin in range(0, len(ranges), IOV_MAX):
        chunk = ranges[begin : begin + IOV_MAX]
        size = sum(length for _, length in chunk)
        _transfer(NR.process_vm_readv, pid, buffer[position : position + size], chunk)
        position += size


def read_quietly(pid: int, ranges: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    """The same, whatever the protection, and without effect on the process: for all of a process's own pages.

    What process_vm_readv(2) reads it pins, and of a page that is shared copy-on-write the kernel makes a copy for that
    (mm/gup.c, gup_must_unshare, 5.19): the memory of forks, and of a snapshot, would become as large as each by itself.

    Raises:
        OSError: EIO where a page cannot be read, or where the kernel was told not to override protections
            (proc_mem.force_override, 6.12); ESRCH when the process is gone.
    """
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    try:
        position = 0
        with about(f"/proc/{pid}/mem"):
            for address, length in ranges:
                end = position + length
                while position < end:
                    got = os.preadv(fd, [buffer[position:end]], address + length - (end - position))
                    if not got:  # it has no memory any more
                        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
                    position += got
    finally:
        os.close(fd)


def write(pid: int, address: int, data: bytes | bytearray) -> None:
    """Write memory that is writable to the process itself."""
    _transfer(NR.process_vm_writev, pid, memoryview(data), [(address, len(data))])


def write_stack(pid: int, address: int, data: bytes) -> None:
    """Write below a stack pointer: where the stack was never that deep, this makes the kernel grow it."""
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(fd, data, address) != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    finally:
        os.close(fd)


def _transfer(nr: int, pid: int, local: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
    done, size = 0, len(local)
    words = array("Q")
    for address, length in ranges:
        words.append(address)
        words.append(length)
    while True:
        done += syscall(nr, pid, Words(local[done:], size - done), 1, words, len(words) // 2)
        if done == size:
            return
        # A short transfer: more than 2 GiB in one call, or the next range cannot be accessed (then EFAULT comes).
        words = _skip(ranges, done)


def _skip(ranges: Iterable[tuple[int, int]], done: int) -> array[int]:
    words = array("Q")
    for address, length in ranges:
        if done >= length:
            done -= length
            continue
        words.append(address + done)
        words.append(length - done)
        done = 0
    return words


# PAGEMAP_SCAN (include/uapi/linux/fs.h, kernel 6.7; carried here because distributions' headers lack it).
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PM_SCAN_ARG_SIZE = 96
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1
_PAGE_IS_WRITTEN = 1 << 1
_PAGE_IS_FILE = 1 << 2
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_SWAPPED = 1 << 4
_PAGE_IS_PFNZERO = 1 << 5
_PAGE_IS_HUGE = 1 << 6
_PAGE_IS_GUARD = 1 << 8  # from 6.15 on
_REGIONS = 1 << 14


class PageMap:
    """What the kernel tells of a process's pages, by PAGEMAP_SCAN. A context manager."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._vector = array("Q", bytes(24 * _REGIONS))  # struct page_region { start, end, categories }

    def __enter__(self) -> PageMap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def own(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `own_pages`."""
        # Guard pages count as swapped out where the kernel has no category for them.
        for guards in (_PAGE_IS_GUARD, 0):
            try:
                found = self._scan(_PAGE_IS_FILE | _PAGE_IS_PFNZERO | guards, 0, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED)
                return intersection(found, ranges)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
        return _walk_pagemap(self._fd, ranges)

    def guards(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `guard_pages`."""
        try:
            return intersection(self._scan(0, _PAGE_IS_GUARD, 0), ranges)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return []

    def written(self, start: int, end: int, *, again: bool, huge: bool = True) -> list[tuple[int, int]] | None:
        """The process's own pages in a mapping that were written since they were protected (see written.py).

        Args:
            start: of the mapping, or of a part of it.
            end: of the same.
            again: protect them again.
            huge: also those in huge pages.

        Returns:
            None where the mapping is not watched.
        """
        flags = _PM_SCAN_CHECK_WPASYNC | (_PM_SCAN_WP_MATCHING if again else 0)
        without = _PAGE_IS_FILE | _PAGE_IS_PFNZERO | (0 if huge else _PAGE_IS_HUGE)
        try:
            return self._scan(without, _PAGE_IS_WRITTEN, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, start, end, flags)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                raise
            return None

    def huge(self, start: int, end: int) -> list[tuple[int, int]]:
        """The huge pages in a part of the address space that were written since they were protected."""
        return self._scan(_PAGE_IS_FILE, _PAGE_IS_WRITTEN | _PAGE_IS_HUGE, 0, start, end)

    def is_watched(self, address: int) -> bool:
        """Whether anybody has the writes to a mapping noted."""
        try:
            self._scan(0, _PAGE_IS_WRITTEN, 0, address, address + PAGE, _PM_SCAN_CHECK_WPASYNC)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                raise
            return False
        return True

    def zeros(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where the zero page is mapped; nowhere if the kernel has no PAGEMAP_SCAN.

        In a mapping of a file that was a page of the process's own, merged with others of zeros (KSM, use_zero_pages).
        """
        return self._scan_if_can(0, _PAGE_IS_PFNZERO, start, end)

    def swapped(self, start: int, end: int) -> list[tuple[int, int]]:
        """What is shown as swapped out in a part of the address space: also where there is nothing but a marker.

        Nothing if the kernel has no PAGEMAP_SCAN: nor has it those markers.
        """
        return self._scan_if_can(_PAGE_IS_FILE, _PAGE_IS_SWAPPED, start, end)

    def _scan_if_can(self, without: int, required: int, start: int, end: int) -> list[tuple[int, int]]:
        try:
            return self._scan(without, required, 0, start, end)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return []

    def _scan(
        self, without: int, required: int, any_of: int, start: int = 0, end: int = TASK_SIZE, flags: int = 0
    ) -> list[tuple[int, int]]:
        """The ranges whose pages have none of some categories, all of others, and any of a third kind."""
        vector = self._vector
        found: list[tuple[int, int]] = []
        while start < end:
            argument = Words(  # struct pm_scan_arg
                _PM_SCAN_ARG_SIZE, flags, start, end, 0, vector, _REGIONS, 0,
                without,  # inverted
                without | required,
                any_of,
                _PAGE_IS_PRESENT,
            )  # fmt: skip
            count = syscall(NR.ioctl, self._fd, _PAGEMAP_SCAN, argument)
            for k in range(0, 3 * count, 3):
                begin, stop = vector[k], vector[k + 1]
                if found and found[-1][1] == begin:
                    found[-1] = (found[-1][0], stop)
                else:
                    found.append((begin, stop))
            start = argument[4]  # walk_end
        return found


def own_pages(
    pid: int, ranges: Sequence[tuple[int, int]], backed: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """The parts of (start, end) `ranges` that hold pages of the process's own: written, and not part of a file.

    Pages never touched, pages that map the zero page and unwritten pages of files are not among them; but the zero page
    is in the ranges that have a file behind them, `backed`. Ranges are sorted by address; so is the answer.
    """
    with PageMap(pid) as pages:
        zeros = (zero for start, end in union(backed) for zero in pages.zeros(start, end))
        return intersection(union(chain(pages.own(ranges), intersection(list(zeros), backed))), ranges)


def dropped_pages(pid: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of sorted (start, end) `ranges`, mappings of files, that look swapped out and cannot be read.

    A marker is all that is left of them (see written.py), of a watch that is not ours, and the file is shorter now.
    """
    found: list[tuple[int, int]] = []
    with PageMap(pid) as pages:
        swapped = [piece for start, end in union(ranges) for piece in pages.swapped(start, end)]
    if not swapped:
        return found
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in intersection(swapped, ranges):
            for page in range(start, end, PAGE):
                try:
                    os.pread(fd, 1, page)
                except OSError as error:
                    if error.errno not in (errno.EIO, errno.EFAULT):
                        raise
                    found.append((page, page + PAGE))
    finally:
        os.close(fd)
    return found


def guard_pages(pid: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of sorted (start, end) `ranges` that are guard regions (MADV_GUARD_INSTALL); none where the kernel does
    not show them: then they look like pages that cannot be read.
    """
    with PageMap(pid) as pages:
        return pages.guards(ranges)


def readable_end(pid: int, start: int, end: int) -> int:
    """Where a mapping has no more pages: its file ends there. Protections do not count."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            middle = (start + end) // 2 // PAGE * PAGE
            try:
                os.pread(fd, 1, middle)
                start = middle + PAGE
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT):
                    raise
                end = middle
        return end
    finally:
        os.close(fd)


# The top byte of a pagemap word: bit 7 present, bit 6 swapped, bit 5 file page or shared (admin-guide/mm/pagemap).
_OWN = re.compile(rb"[\x40-\x5f\x80-\x9f\xc0-\xdf]+")


def _walk_pagemap(fd: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same from the words of pagemap, for kernels without PAGEMAP_SCAN; zero pages count as the process's own."""
    found: list[tuple[int, int]] = []
    step = PAGE << 17  # 1 MiB of words
    for start, end in ranges:
        for begin in range(start, end, step):
            stop = min(begin + step, end)
            words = os.pread(fd, (stop - begin) // PAGE * 8, begin // PAGE * 8)
            for run in _OWN.finditer(words[7::8]):
                found.append((begin + run.start() * PAGE, begin + run.end() * PAGE))
    return found

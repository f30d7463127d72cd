"""Reading and writing another process's memory, and finding its private pages."""

from __future__ import annotations

import errno
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import eq

from torpor._native import ffi, lib
from torpor.arch.x86_64 import NR, TASK_SIZE
from torpor.errors import about
from torpor.procfs import PAGE
from torpor.remote.sys import Words, syscall
from torpor.util.ranges import Range, intersection, subtract, union

IOV_MAX = 1024


def read(pid: int, address: int, size: int) -> bytes:
    """Read memory.

    Raises:
        OSError: EFAULT if a part is not readable, ESRCH if the process is gone.
    """
    buffer = bytearray(size)
    read_into(pid, address, memoryview(buffer))
    return bytes(buffer)


def read_into(pid: int, address: int, buffer: memoryview) -> None:
    """Read memory into `buffer` until it is full."""
    read_ranges(pid, [(address, len(buffer))], buffer)


def read_ranges(pid: int, ranges: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    """Read (address, size) ranges into `buffer`, one after the other, with as few system calls as possible."""
    _in_chunks(NR.process_vm_readv, pid, ranges, buffer)


def read_quietly(pid: int, ranges: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    """Like `read_ranges`, but whatever the protection, and without an effect on the process: for bulk reads.

    process_vm_readv(2) pins pages, and to pin a page that is shared copy-on-write the kernel copies it (mm/gup.c,
    gup_must_unshare, 5.19): the memory of forks and of a snapshot would become as large as if nothing were shared.

    Raises:
        OSError: EIO if a page cannot be read, or if the kernel is configured not to override protections
            (proc_mem.force_override, 6.12); ESRCH if the process is gone.
    """
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    try:
        assert sum(length for _, length in ranges) <= len(buffer)
        pieces = array("Q", chain.from_iterable(ranges))
        with about(f"/proc/{pid}/mem"):
            if failed := lib.tp_read_pieces(
                fd, ffi.from_buffer("uint64_t[]", pieces), len(ranges), ffi.from_buffer(buffer)
            ):
                raise OSError(-failed, os.strerror(-failed))
    finally:
        os.close(fd)


def write(pid: int, address: int, data: bytes | bytearray) -> None:
    """Write memory that the process itself may write."""
    write_ranges(pid, [(address, len(data))], data)


def write_ranges(pid: int, ranges: Sequence[tuple[int, int]], data: bytes | bytearray) -> None:
    """Write to (address, size) ranges what stands in `data` one after the other."""
    _in_chunks(NR.process_vm_writev, pid, ranges, memoryview(data))


def fill(pid: int, userfaultfd: int, pieces: array[int], data: memoryview) -> None:
    """Write to the memory of a stopped process; to pages that are missing, without a page fault for each.

    Args:
        pid: the process, which may write that memory itself.
        userfaultfd: of its memory, that watches for missing pages; -1: none.
        pieces: an address, a size and an offset in `data` for each piece, which lies within one mapping.
        data: what is written.

    Raises:
        OSError: ENOMEM if its control group has no more memory, ESRCH if the process is gone.
    """
    words = ffi.from_buffer("uint64_t[]", pieces)
    if failed := lib.tp_fill(pid, userfaultfd, words, len(pieces) // 3, ffi.from_buffer(data)):
        raise OSError(-failed, os.strerror(-failed))


def write_stack(pid: int, address: int, data: bytes) -> None:
    """Write below a stack pointer. The kernel grows the stack if it was never that deep."""
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(fd, data, address) != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    finally:
        os.close(fd)


def _in_chunks(nr: int, pid: int, ranges: Sequence[tuple[int, int]], local: memoryview) -> None:
    position = 0
    for begin in range(0, len(ranges), IOV_MAX):
        chunk = ranges[begin : begin + IOV_MAX]
        size = sum(length for _, length in chunk)
        _transfer(nr, pid, local[position : position + size], chunk)
        position += size


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
        # A short transfer: more than 2 GiB in one call, or the next range is inaccessible (then the next call gives
        # EFAULT).
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
_LARGE = 32 << 20
"""Bytes of a mapping without a file from which on it is scanned apart. No page in it is a file's. Without PAGE_IS_FILE
the kernel reads the page tables alone, and not what it knows of each page: that takes a fourth of the time.
"""


class PageMap:
    """The kernel's view of a process's pages, by PAGEMAP_SCAN. A context manager."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._vector = array("Q", bytes(24 * _REGIONS))  # struct page_region { start, end, categories }

    def __enter__(self) -> PageMap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def own(self, ranges: Sequence[Range], backed: Sequence[Range]) -> list[Range]:
        """The own pages in sorted ranges, without zero pages; `backed` are those that have a file behind them."""
        large = [(start, end) for start, end in subtract(ranges, backed) if end - start >= _LARGE]
        # If the kernel has no category for guard pages, it reports them as swapped out.
        for guards in (_PAGE_IS_GUARD, 0):
            found: list[Range] = []
            last = 0
            try:
                for start, end in (*large, (TASK_SIZE, TASK_SIZE)):
                    found += self._own(last, start, _PAGE_IS_FILE | guards)
                    found += self._own(start, end, guards)
                    last = end
                return intersection(union(found), ranges)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
        return _walk_pagemap(self._fd, ranges)

    def _own(self, start: int, end: int, without: int) -> list[Range]:
        return self._scan(without | _PAGE_IS_PFNZERO, 0, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, start, end)

    def guards(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `guard_pages`."""
        try:
            return intersection(self._scan(0, _PAGE_IS_GUARD, 0), ranges)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return []

    def written(
        self, start: int, end: int, *, again: bool, huge: bool = True, backed: bool = True
    ) -> list[tuple[int, int]] | None:
        """The process's own pages in a mapping that were written since they were last protected (see written.py).

        Args:
            start: the start of the mapping or of a part of it.
            end: its end.
            again: protect the pages again.
            huge: include huge pages.
            backed: whether there is a file behind it. If not, the scan is faster: see `_LARGE`.

        Returns:
            None if the mapping is not watched.
        """
        flags = _PM_SCAN_CHECK_WPASYNC | (_PM_SCAN_WP_MATCHING if again else 0)
        without = (_PAGE_IS_FILE if backed else 0) | _PAGE_IS_PFNZERO | (0 if huge else _PAGE_IS_HUGE)
        try:
            return self._scan(without, _PAGE_IS_WRITTEN, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, start, end, flags)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                raise
            return None

    def unprotected(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """The pages in a mapping that are not write-protected: all in `written`, and more that do not matter, such as
        addresses without a page. None if the mapping is not watched.

        This takes a tenth of the time of `written`: if only PAGE_IS_WRITTEN is asked for, the kernel reads the page
        tables alone, and not what it knows of each page (fs/proc/task_mmu.c, pagemap_scan_pmd_entry, 6.7).
        """
        try:
            return self._scan(0, _PAGE_IS_WRITTEN, 0, start, end, _PM_SCAN_CHECK_WPASYNC, shown=_PAGE_IS_WRITTEN)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                raise
            return None

    def protect(self, start: int, end: int) -> None:
        """Protect all pages of a watched mapping."""
        self._scan(0, _PAGE_IS_WRITTEN, 0, start, end, _PM_SCAN_CHECK_WPASYNC | _PM_SCAN_WP_MATCHING, _PAGE_IS_WRITTEN)

    def huge(self, start: int, end: int) -> list[tuple[int, int]]:
        """The huge pages in an address range that were written since they were last protected."""
        return self._scan(_PAGE_IS_FILE, _PAGE_IS_WRITTEN | _PAGE_IS_HUGE, 0, start, end)

    def is_watched(self, address: int) -> bool:
        """Whether the mapping at `address` is write-protected by a userfaultfd, ours or another."""
        try:
            self._scan(0, _PAGE_IS_WRITTEN, 0, address, address + PAGE, _PM_SCAN_CHECK_WPASYNC)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                raise
            return False
        return True

    def zeros(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where the zero page is mapped; empty if the kernel has no PAGEMAP_SCAN.

        In a mapping of a file, such a page was private and full of zeros, and was merged (KSM, use_zero_pages).
        """
        return self._scan_if_can(0, _PAGE_IS_PFNZERO, start, end)

    def swapped(self, start: int, end: int) -> list[tuple[int, int]]:
        """What the kernel reports as swapped out in an address range, including pages of which only a marker is left.

        Empty if the kernel has no PAGEMAP_SCAN: it has no such markers then either.
        """
        return self._scan_if_can(_PAGE_IS_FILE, _PAGE_IS_SWAPPED, start, end)

    def has_zeros_or_swapped(self, start: int, end: int) -> bool:
        """Whether `zeros` or `swapped` may find anything; mostly not, and this is one scan instead of two."""
        return bool(self._scan_if_can(0, 0, start, end, any_of=_PAGE_IS_PFNZERO | _PAGE_IS_SWAPPED))

    def _scan_if_can(
        self, without: int, required: int, start: int, end: int, *, any_of: int = 0
    ) -> list[tuple[int, int]]:
        try:
            return self._scan(without, required, any_of, start, end)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return []

    def _scan(
        self,
        without: int,
        required: int,
        any_of: int,
        start: int = 0,
        end: int = TASK_SIZE,
        flags: int = 0,
        shown: int = _PAGE_IS_PRESENT,
    ) -> list[tuple[int, int]]:
        """The ranges whose pages are in no category of `without`, in all of `required`, and in one of `any_of`."""
        vector = self._vector
        starts, ends = array("Q"), array("Q")
        while start < end:
            argument = Words(  # struct pm_scan_arg
                _PM_SCAN_ARG_SIZE, flags, start, end, 0, vector, _REGIONS, 0,
                without,  # inverted
                without | required,
                any_of,
                shown,
            )  # fmt: skip
            count = syscall(NR.ioctl, self._fd, _PAGEMAP_SCAN, argument)
            starts += vector[0 : 3 * count : 3]
            ends += vector[1 : 3 * count : 3]
            start = argument[4]  # walk_end
        found = list(zip(starts, ends, strict=True))
        return union(found) if any(map(eq, ends, starts[1:])) else found


def own_pages(
    pid: int, ranges: Sequence[tuple[int, int]], backed: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """The parts of (start, end) `ranges` that hold the process's own pages: written, and not part of a file.

    Pages never touched, mappings of the zero page and unwritten pages of files are not among them. But in ranges that
    have a file behind them (`backed`, which must name all of them) the zero page counts. Ranges are sorted by address;
    so is the result.
    """
    with PageMap(pid) as pages:
        zeros = (zero for start, end in union(backed) for zero in pages.zeros(start, end))
        return intersection(union(chain(pages.own(ranges, backed), intersection(list(zeros), backed))), ranges)


def dropped_pages(pid: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of sorted (start, end) `ranges`, mappings of files, that look swapped out but cannot be read.

    Only a marker of another program's userfaultfd is left of these pages (see written.py), and the file is shorter now.
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
    """The parts of sorted (start, end) `ranges` that are guard regions (MADV_GUARD_INSTALL).

    Empty if the kernel does not report them: then they look like pages that cannot be read.
    """
    with PageMap(pid) as pages:
        return pages.guards(ranges)


def readable_end(pid: int, start: int, end: int) -> int:
    """The address behind the last page of a mapping whose file may be shorter. Protections do not matter."""
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
_STEP = 1 << 17
"""How many words are read at once."""
_HOLES = (bytes(8 * _STEP), b"\0\0\0\0\0\0\x80\0" * _STEP)
"""The words where there are no pages. In a new mapping all have the bit 55, soft-dirty, if the kernel tracks that."""


def _walk_pagemap(fd: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`own_pages` by the words of pagemap, for kernels without PAGEMAP_SCAN. Zero pages count as own pages."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        for begin in range(start, end, _STEP * PAGE):
            stop = min(begin + _STEP * PAGE, end)
            words = os.pread(fd, (stop - begin) // PAGE * 8, begin // PAGE * 8)
            if words in _HOLES:  # as in most of a large reservation: comparing is five times faster than searching
                continue
            for run in _OWN.finditer(words[7::8]):
                found.append((begin + run.start() * PAGE, begin + run.end() * PAGE))
    return found

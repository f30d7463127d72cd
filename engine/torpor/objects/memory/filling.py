"""Large memory is filled by several threads of this process, with blocks that were compared with their hashes before.

Each thread reads a part of a pack, compares it, and copies it from its buffer, which the processor still has in its
cache. A userfaultfd makes the pages with their content: no page is zeroed first, and none costs a fault. Where there is
none, process_vm_writev(2) writes to the process.

A userfaultfd makes small pages only. So where the kernel may give huge pages, whole ones are made before, by a touch.
"""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from torpor.errors import ImageDamaged, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece
from torpor.objects.memory.vm_flags import MADV_HUGEPAGE, MADV_NOHUGEPAGE
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.store import BlockTable, SnapshotReader
from torpor.util.ranges import Range, intersection, union
from torpor.util.workers import Workers

LARGE = 64 << 20
"""A process fills less than this many bytes itself: for many small processes that takes less time."""
_PART = 1 << 20
"""The bytes that are read, compared and copied at once: few enough for a processor's cache."""
_GAP = 16 * PAGE
"""The largest gap between two blocks of a part: reading more would take longer than another call."""
_HUGE = 2 << 20
_TOUCHED = 16
"""The huge pages that are made at once."""
_MOST = 8
"""The most threads. More would wait for Python's lock, which each holds for a tenth of its time."""


class Part(NamedTuple):
    """A part of a pack, and what of it is written where."""

    blocks: list[int]
    """Its blocks, by their offset."""
    size: int
    pieces: array[int]
    """An address, a size, and an offset from the first block on, for each piece."""


def parts(wanted: Iterable[Piece], blocks: BlockTable, mappings: Iterable[Range]) -> Iterator[Part]:
    """Cut pages into parts, in the order of the packs. A piece of a part lies in one mapping.

    Args:
        wanted: the pages and their blocks.
        blocks: the blocks of the snapshot.
        mappings: all mappings with pages, by address.

    Raises:
        ImageDamaged: a block is shorter than its pages.
    """
    packs, offsets, lengths = blocks.packs, blocks.offsets, blocks.lengths
    starts = [start for start, _ in mappings]
    borders = set(starts)
    rows: list[tuple[int, int, int, int, int, int]] = []
    for page, count, block, skip in wanted:
        if block >= len(offsets) or (skip + count) * PAGE > lengths[block]:
            raise ImageDamaged(f"the pages at {page * PAGE:#x} lie in no block of the snapshot")
        address, end, at = page * PAGE, (page + count) * PAGE, skip * PAGE
        next_one = bisect_right(starts, address)
        while next_one < len(starts) and starts[next_one] < end:
            size = starts[next_one] - address
            rows.append((packs[block], offsets[block], block, at, address, size))
            address, at, next_one = address + size, at + size, next_one + 1
        rows.append((packs[block], offsets[block], block, at, address, end - address))
    rows.sort()
    found: list[int] = []
    pieces = array("Q")
    first = last = -1
    begin = stop = 0
    for pack, offset, block, skip, address, size in rows:
        if block != last:
            reach = max(stop, offset + lengths[block])
            if pack != first or offset - stop > _GAP or reach - begin > _PART:
                if found:
                    yield Part(found, stop - begin, pieces)
                found, pieces, first, begin = [], array("Q"), pack, offset
                reach = offset + lengths[block]
            found.append(block)
            last, stop = block, reach
        at = offset - begin + skip
        if pieces and address == pieces[-3] + pieces[-2] and at == pieces[-1] + pieces[-2] and address not in borders:
            pieces[-2] += size
        else:
            pieces.extend((address, size, at))
    if found:
        yield Part(found, stop - begin, pieces)


class Layout(NamedTuple):
    """How the memory of a process is filled."""

    fresh: list[Range]
    """The mappings in which missing pages are made with their content."""
    advised: list[Range]
    """Those of them that the process has asked to have huge pages."""
    huge: list[Range]
    """Where whole huge pages are made before."""


def layout(space: pb.AddressSpace, wanted: Iterable[Piece], huge_pages: str) -> Layout:
    """Say how the pages of an address space are made.

    Args:
        space: the address space.
        wanted: the pages that are filled.
        huge_pages: when the kernel makes huge pages: "always", "madvise" or else.
    """
    private = [vma for vma in space.vmas if vma.kind == pb.Vma.ANONYMOUS and not (vma.huge_page or vma.droppable)]
    asked = [vma for vma in private if MADV_HUGEPAGE in vma.advice] if huge_pages in ("always", "madvise") else []
    may = asked
    if huge_pages == "always":
        may = [vma for vma in private if MADV_NOHUGEPAGE not in vma.advice]
    whole = intersection(
        union((page * PAGE, (page + count) * PAGE) for page, count, *_ in wanted), [(v.start, v.end) for v in may]
    )
    huge = [(-(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE) for start, end in whole]
    return Layout(
        [(vma.start, vma.end) for vma in private],
        [(vma.start, vma.end) for vma in asked],
        [(start, end) for start, end in huge if start < end],
    )


class Filling:
    """Fills the memory of stopped processes. A context manager; an error ends it as soon as it may."""

    def __init__(self, reader: SnapshotReader, progress: Callable[[int], None] | None) -> None:
        self._reader = reader
        self._progress = progress
        self._pool = Workers(min(len(os.sched_getaffinity(0)), _MOST))
        self._under_way: deque[tuple[str, Future[int]]] = deque()
        self._buffers = threading.local()

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def touch(self, name: str, pid: int, pages: Sequence[Range]) -> None:
        """Make huge pages, which have no content yet."""
        for start, end in pages:
            for first in range(start, end, _TOUCHED * _HUGE):
                places = range(first, min(end, first + _TOUCHED * _HUGE), _HUGE)
                self._add(name, self._touch, pid, places)
        self.finish()

    def add(self, name: str, pid: int, fd: int, some: Iterable[Part]) -> None:
        """Begin to fill a process.

        Args:
            name: the process, for messages.
            pid: its PID here.
            fd: a userfaultfd of its memory, which the caller closes after `finish`; -1: none.
            some: what is written where.
        """
        for part in some:
            self._add(name, self._fill, pid, fd, part)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            ImageDamaged, StoreError: a block is not what was written, or cannot be read.
            RestoreFailed: a process has no memory for it.
        """
        while self._under_way:
            name, future = self._under_way.popleft()
            try:
                done = future.result()
            except OSError as error:
                raise RestoreFailed(f"{name}: filling its memory: {error.strerror}") from error
            if self._progress:
                self._progress(done)

    def _add(self, name: str, work: Callable[..., int], *args: object) -> None:
        self._under_way.append((name, self._pool.submit(work, *args)))

    def _touch(self, pid: int, places: Sequence[int]) -> int:
        memory.write_ranges(pid, [(place, 1) for place in places], bytes(len(places)))
        return 0

    def _fill(self, pid: int, fd: int, part: Part) -> int:
        buffer = self._buffer(part.size)
        self._reader.read_blocks(part.blocks, buffer)
        memory.fill(pid, fd, part.pieces, buffer)
        return sum(part.pieces[1::3])

    def _buffer(self, size: int) -> memoryview:
        """This thread's buffer, which a block that is longer than a part may outgrow."""
        view: memoryview | None = getattr(self._buffers, "view", None)
        if view is None or len(view) < size:
            view = self._buffers.view = memoryview(mmap.mmap(-1, max(size, _PART), mmap.MAP_PRIVATE))
        return view[:size]

"""A process's own pages: workers find, read, hash and store them, without zero pages."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial

from torpor import procfs
from torpor._native import ffi, lib
from torpor.errors import CheckpointFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory.incremental import BLOCK_PAGES, Before, Columns, Cut, cut, join
from torpor.objects.paths import file_content
from torpor.objects.paths.file_content import Content
from torpor.procfs import PAGE, FlaggedMapping, page_up
from torpor.remote import memory
from torpor.store import SnapshotWriter
from torpor.util.ranges import Range, intersection, subtract, union
from torpor.util.workers import Workers

_CHUNK = 4 << 20
_FEWEST, _MOST = 2, 8
"""Threads that read, hash and write chunks, one for each processor. More would wait for Python's lock, which each holds
for a tenth of its time.
"""


class _CannotRead(CheckpointFailed):
    """A page cannot be read by the thread that tried."""


Progress = Callable[[int, int], None]
"""Called with the bytes of memory done so far and in all."""
_Read = Callable[[Sequence[tuple[int, int]], memoryview], None]
"""Fills a buffer with the content of (address, size) pieces."""
_Stored = tuple[list[int], list[int], list[int]]
"""Columns of a page table; or, before the pages are stored, page number, count and offset in the buffer."""


class Walk:
    """Reads the page tables of a snapshot in another thread, while there is other work."""

    def __init__(self, pool: Executor, pid: int, private: Sequence[Range], backed: Sequence[Range]) -> None:
        """Begin. `private` are the private mappings, `backed` those of them with a file behind them."""
        self._smaps = pool.submit(procfs.read, f"/proc/{pid}/smaps")
        self._own = pool.submit(memory.own_pages, pid, private, backed)

    def mappings(self) -> list[FlaggedMapping]:
        """See `procfs.flagged_mappings`."""
        return procfs.parse_smaps(self._smaps.result())

    def own_pages(self) -> list[Range]:
        """The process's own pages in these mappings."""
        return self._own.result()


@dataclass
class Ranges:
    """Where a process may have pages of its own."""

    pid: int
    """The process to read from: the snapshot, or the frozen process itself."""
    private: list[tuple[int, int]]
    """The private mappings, by address."""
    whole: list[tuple[int, int]]
    """Mappings of files that are gone, without guard regions: every page that the file had is kept."""
    walk: Walk | None = None
    backed: list[tuple[int, int]] = field(default_factory=list)
    """Mappings of files and shared memory, by address: there a zero page must be stored, since the file may differ."""

    def find(self) -> list[tuple[int, int]]:
        """The ranges of its own pages, by address."""
        if not self.private:
            return []
        if self.walk:
            found = intersection(self.walk.own_pages(), self.private)
        else:
            found = memory.own_pages(self.pid, self.private, self.backed)
            found = subtract(found, memory.dropped_pages(self.pid, self.backed))
        if not self.whole:
            return found
        whole = [(start, memory.readable_end(self.pid, start, end)) for start, end in self.whole]
        return union([*found, *((start, end) for start, end in whole if start < end)])

    def cut(self, before: Before | None) -> Cut:
        """Split its own pages into those that have not changed since the previous snapshot and those to be read."""
        found = self.find()
        if before is None:
            return Cut(Columns.empty(), found)
        return cut(found, replace(before, written=[*before.written, *self.whole]))


class PageWriter:
    """Writes pages to the store with a few workers. A context manager: at its exit all is written, and listed in the
    tables.
    """

    def __init__(self, writer: SnapshotWriter, progress: Progress) -> None:
        self._writer = writer
        self._progress = progress
        self._count = max(_FEWEST, min(len(os.sched_getaffinity(0)), _MOST))
        self._pool = Workers(self._count)
        self._waiting: deque[Callable[[], None]] = deque()
        """Each waits for a chunk that is under way, or for all before it, and fills a table."""
        self._buffers = threading.local()
        self._lock = threading.Lock()
        self._done = self._expected = 0

    def __enter__(self) -> PageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish(0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def expect(self, size: int) -> None:
        """Announce bytes to come, for the progress."""
        self._expected += size

    def store_private(self, own: Ranges, pages: Cut, before: Before | None, table: pb.PageTable) -> None:
        """Write a process's own pages. The numbers in the table are addresses / page size.

        Args:
            own: the process to read from.
            pages: its own pages.
            before: the process in the snapshot that is the writer's base; None: no page counts as unchanged.
            table: to be filled, by the end of the context.
        """
        read = partial(_read, own.pid)

        if before is None:
            self._store(pages.dirty, read, table, own.backed)
            return
        kept = pages.kept._replace(blocks=array("Q", self._writer.adopt(pages.kept.blocks)))
        read_now = pb.PageTable()
        self._store(pages.dirty, read, read_now, own.backed)

        self._waiting.append(lambda: join(kept, Columns.of(read_now), table))

    def store_file(self, fd: int, size: int, table: pb.PageTable) -> None:
        """Write the content of an open file; the numbers in the table count from its start."""
        ranges = union((start // PAGE * PAGE, page_up(end)) for start, end in file_content.data(fd, 0, size))
        self.expect(sum(end - start for start, end in ranges))

        def read(pieces: Sequence[tuple[int, int]], buffer: memoryview) -> None:
            position = 0
            for start, length in pieces:
                view, done = buffer[position : position + length], 0
                while done < length and (got := os.preadv(fd, [view[done:]], start + done)):
                    done += got
                view[done:] = bytes(length - done)
                position += length

        self._store(ranges, read, table)
        self._finish(0)  # before the caller closes it

    def store_shared(self, segment: Content, table: pb.PageTable) -> None:
        """Write a segment of shared memory; the numbers in the table count from its start."""
        # On a file system with blocks smaller than a page, data begins and ends within pages.
        ranges = union((at // PAGE * PAGE, page_up(at + len(content))) for at, content in segment.pieces.items())
        starts = sorted(segment.pieces)
        self.expect(sum(end - start for start, end in ranges))

        def read(pieces: Sequence[tuple[int, int]], buffer: memoryview) -> None:
            position = 0
            for start, size in pieces:
                buffer[position : position + size] = bytes(size)
                for at in starts[max(bisect_right(starts, start) - 1, 0) : bisect_left(starts, start + size)]:
                    content = segment.pieces[at]
                    begin, end = max(start, at), min(start + size, at + len(content))
                    if begin < end:
                        into = position + begin - start
                        buffer[into : into + end - begin] = content[begin - at : end - at]
                position += size

        self._store(ranges, read, table)

    def _store(
        self, ranges: Sequence[tuple[int, int]], read: _Read, table: pb.PageTable, zeros: Sequence[Range] = ()
    ) -> None:
        """Store ranges. Pages of zeros are stored only in `zeros`."""
        # A table lists its pages by address, so the results are taken in the order of the chunks.
        for chunk in _chunks(ranges):
            work = partial(self._work, chunk, read, zeros)
            self._waiting.append(partial(_list, table, self._pool.submit(work), work))
            self._finish(2 * self._count)

    def _finish(self, left: int) -> None:
        """Take results until no more than `left` are under way."""
        while len(self._waiting) > left:
            self._waiting.popleft()()

    def _work(self, chunk: list[tuple[int, int]], read: _Read, zeros: Sequence[Range]) -> _Stored:
        size = sum(length for _, length in chunk)
        buffer = self._buffer()[:size]
        read(chunk, buffer)
        zero = bytearray(size // PAGE)
        lib.tp_zero_pages(ffi.from_buffer(buffer), len(zero), PAGE, ffi.from_buffer(zero))
        if zeros:
            _keep(chunk, zeros, zero)
        starts, counts, positions = _blocks(chunk, zero)
        lengths = [count * PAGE for count in counts]
        if sum(lengths) < size:
            pieces = [buffer[at : at + length] for at, length in zip(positions, lengths, strict=True)]
            buffer = memoryview(b"".join(pieces))
        blocks = self._writer.add_blocks(buffer, lengths)
        self._tell(size)
        return starts, counts, blocks

    def _buffer(self) -> memoryview:
        """This worker's buffer: fresh memory for each chunk would cost a page fault per page."""
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None:
            found = self._buffers.view = memoryview(bytearray(_CHUNK))
        return found

    def _tell(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._progress(self._done, self._expected)


def _read(pid: int, pieces: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    try:
        memory.read_quietly(pid, pieces, buffer)
    except ProcessLookupError:
        raise
    except OSError as error:
        why = f"memory of process {pid} between {pieces[0][0]:#x} and {sum(pieces[-1]):#x} cannot be read"
        hint = (
            "Linux 6.13 and 6.14 do not show guard regions (MADV_GUARD_INSTALL); with proc_mem.force_override=never the"
            " kernel lets nobody read memory without PROT_READ"
        )
        raise _CannotRead(f"{why}: {error.strerror}", advice=hint) from error


def _chunks(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut ranges into lists of (address, size) of up to _CHUNK bytes each, at block boundaries."""
    chunk: list[tuple[int, int]] = []
    room = _CHUNK
    for start, end in ranges:
        position = start
        while position < end:
            size = min(end, (position + room) // (BLOCK_PAGES * PAGE) * (BLOCK_PAGES * PAGE)) - position
            if size <= 0 or len(chunk) == memory.IOV_MAX:
                yield chunk
                chunk, room = [], _CHUNK
                continue
            chunk.append((position, size))
            position += size
            room -= size
    if chunk:
        yield chunk


def _list(table: pb.PageTable, stored: Future[_Stored], again: Callable[[], _Stored]) -> None:
    try:
        starts, counts, blocks = stored.result()
    except _CannotRead:
        # Memory without PROT_READ may be readable only to the thread that traces the process, as this one does, and not
        # to a worker (fs/proc/base.c, proc_mem_foll_force: CONFIG_PROC_MEM_FORCE_PTRACE, Linux 6.12).
        starts, counts, blocks = again()
    table.starts.extend(starts)
    table.counts.extend(counts)
    table.blocks.extend(blocks)


def _keep(chunk: Sequence[tuple[int, int]], kept: Sequence[Range], zero: bytearray) -> None:
    """Mark the pages of a chunk that are in `kept` as not zero."""
    kept = kept[max(bisect_left(kept, chunk[0]) - 1, 0) : bisect_left(kept, (sum(chunk[-1]), 0))]
    at = 0  # pages, in the chunk
    for address, size in chunk if kept else ():
        for start, end in intersection([(address, address + size)], kept):
            first, last = at + (start - address) // PAGE, at + (end - address) // PAGE
            zero[first:last] = bytes(last - first)
        at += size // PAGE


def _blocks(chunk: Sequence[tuple[int, int]], zero: bytearray) -> _Stored:
    """Cut a chunk into blocks without zero pages: page number, page count and offset in the chunk's buffer of each."""
    starts: list[int] = []
    counts: list[int] = []
    positions: list[int] = []
    offset = 0  # pages, in the buffer
    for address, size in chunk:
        first = address // PAGE
        last = first + size // PAGE
        page = first
        while page < last:
            stop = min(last, page - page % BLOCK_PAGES + BLOCK_PAGES)
            base = offset + page - first
            flags = zero[base : base + stop - page]
            if not any(flags):
                starts.append(page)
                counts.append(stop - page)
                positions.append(base * PAGE)
            else:
                _split(page, base, flags, starts, counts, positions)
            page = stop
        offset += size // PAGE
    return starts, counts, positions


def _split(page: int, base: int, flags: bytearray, starts: list[int], counts: list[int], positions: list[int]) -> None:
    """List the runs of pages that are not zero in one block."""
    at = flags.find(0)
    while at >= 0:
        end = flags.find(1, at)
        if end < 0:
            end = len(flags)
        starts.append(page + at)
        counts.append(end - at)
        positions.append((base + at) * PAGE)
        at = flags.find(0, end)

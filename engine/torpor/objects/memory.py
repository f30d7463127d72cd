"""The memory of a process: its address space, and the pages that are its own.

Kept: every private page that was written, whatever its protection now (RELRO is read-only, but was written); guard
regions; the bounds of heap, stack, arguments and environment, the auxiliary vector, the exe link, the vDSO's place and
bytes. Pages of files that nobody wrote are taken from the file again. Of written pages those that are all zeros are
left out where zeros would be there without them, which is not so in a mapping of a file. A private mapping of a file
that is gone or was replaced (an upgraded library) is kept whole, and becomes anonymous; behind the file's end it has
zeros. What is shared copy-on-write since a fork is kept once, and shared again (copy_on_write.py).

Refused: guard regions in shared memory, which is read through its mappings.

Documented in: proc_pid_stat(5), proc_pid_maps(5), Documentation/admin-guide/mm/pagemap.rst, prctl(2) on PR_SET_MM.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial

from torpor import procfs
from torpor._native import ffi, lib
from torpor.errors import CheckpointFailed, Reason
from torpor.image import image_pb2 as pb
from torpor.objects import filling, shared_memory, vdso, vm_flags, vmas
from torpor.objects.mapped_files import MappedFiles
from torpor.objects.shared_memory import Segment, SharedMemory
from torpor.objects.unchanged import BLOCK_PAGES, Before, Columns, Cut, cut, join
from torpor.procfs import PAGE, FlaggedMapping, page_up
from torpor.ranges import Range, intersection, subtract, union
from torpor.remote import memory
from torpor.store import SnapshotWriter
from torpor.workers import Workers

_CHUNK = 4 << 20
_WORKERS = 2
"""Each reads, hashes and writes chunks of its own; more find nothing to do that the disk could take."""

Progress = Callable[[int, int], None]
"""Told the bytes of memory done so far and in all."""
_Read = Callable[[Sequence[tuple[int, int]], memoryview], None]
"""Fills a buffer with (address, size) pieces."""
_Stored = tuple[list[int], list[int], list[int]]
"""Columns of a page table, or page number, count and place in the buffer before it is stored."""


def refuse(name: str, pid: int, found: Sequence[FlaggedMapping]) -> list[Reason]:
    """What of a process's pages cannot be kept.

    Args:
        name: the process, for people.
        pid: whose memory to look at.
        found: its mappings.
    """
    shared = [(vma.mapping.start, vma.mapping.end) for vma in found if shared_memory.is_memory(vma.mapping)]
    guards = memory.guard_pages(pid, shared) if shared else []
    why = "it is a guard region (MADV_GUARD_INSTALL) in shared memory, which is not kept"
    return [Reason(f"{name}, memory {start:#x}-{end:#x}", why) for start, end in guards]


class Walk:
    """What the kernel walks page tables for, asked of a snapshot by another thread while there is more to do."""

    def __init__(self, pool: Executor, pid: int, private: Sequence[Range], backed: Sequence[Range]) -> None:
        """Begin; `private` are its private mappings, `backed` those of them that have a file behind them."""
        self._smaps = pool.submit(procfs.read, f"/proc/{pid}/smaps")
        self._own = pool.submit(memory.own_pages, pid, private, backed)

    def mappings(self) -> list[FlaggedMapping]:
        """See `procfs.flagged_mappings`."""
        return procfs.parse_smaps(self._smaps.result())

    def own_pages(self) -> list[Range]:
        """The pages of its own in these mappings."""
        return self._own.result()


def describe(
    pid: int,
    found: Sequence[FlaggedMapping],
    image: pb.Process,
    files: MappedFiles,
    shared: SharedMemory,
    walk: Walk | None,
) -> Ranges:
    """Fill the address space of a process, without its pages; gives the ranges whose pages are to be stored.

    Args:
        pid: whose /proc to read: the snapshot, or the process itself while it is frozen.
        found: its mappings, without any of ours.
        image: the process's message.
        files: the mapped files of the tree.
        shared: the shared memory of the tree, described already.
        walk: the one through the snapshot, where there is a snapshot.
    """
    space = image.memory
    _describe_bounds(pid, space)
    space.exe = files.program(pid)
    guards = memory.guard_pages(pid, [(vma.mapping.start, vma.mapping.end) for vma in found])
    space.guards.starts.extend(start // PAGE for start, _ in guards)
    space.guards.counts.extend((end - start) // PAGE for start, end in guards)
    vdso.describe([vma.mapping for vma in found if vma.mapping.name in vdso.NAMES], vdso.host(), space)
    pages = Ranges(pid, [], [], walk)
    for vma in (vma._replace(mapping=shared.names.lasting(vma.mapping)) for vma in found):
        if not vmas.is_special(vma.mapping):
            kind = _describe_vma(vma, space.vmas.add(), files, shared)
            bounds = (vma.mapping.start, vma.mapping.end)
            if kind in vmas.PRIVATE and vm_flags.DROPPABLE not in vma.flags:
                pages.private.append(bounds)
            if kind in (pb.Vma.FILE_PRIVATE, pb.Vma.MEMORY_PRIVATE):
                pages.backed.append(bounds)
            if kind == pb.Vma.ANONYMOUS and vmas.was_file(vma):
                pages.whole += subtract([bounds], guards)
    return pages


_MCL_FUTURE, _MCL_ONFAULT = 2, 4


def future_lock(pid: int, before: Mapping[bytes, bytes], window: int) -> int:
    """How what a process will map is to be locked (mlockall(2)): only what it has just mapped tells.

    Args:
        pid: a frozen process.
        before: its status before a window was mapped into it.
        window: the window's address.
    """
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    if status[b"VmLck"] == before[b"VmLck"]:
        return 0
    flags = next(v.flags for v in procfs.flagged_mappings(pid) if v.mapping.start <= window < v.mapping.end)
    return _MCL_FUTURE | (_MCL_ONFAULT if vm_flags.is_locked_on_fault(flags) else 0)


def _describe_bounds(pid: int, space: pb.AddressSpace) -> None:
    fields = procfs.stat(pid).fields
    space.start_code, space.end_code, space.start_stack = (int(fields[k - 1]) for k in (26, 27, 28))
    space.start_data, space.end_data, space.start_brk = (int(fields[k - 1]) for k in (45, 46, 47))
    space.arg_start, space.arg_end, space.env_start, space.env_end = (int(fields[k - 1]) for k in (48, 49, 50, 51))
    space.auxv = procfs.read(f"/proc/{pid}/auxv")


def _describe_vma(vma: FlaggedMapping, out: pb.Vma, files: MappedFiles, shared: SharedMemory) -> int:
    mapping = vma.mapping
    out.start, out.end, out.prot = mapping.start, mapping.end, vmas.protection(mapping)
    out.grows_down = vm_flags.GROWS_DOWN in vma.flags
    out.noreserve = vm_flags.NORESERVE in vma.flags
    out.locked = vm_flags.LOCKED in vma.flags
    out.locked_on_fault = vm_flags.is_locked_on_fault(vma.flags)
    out.droppable = vm_flags.DROPPABLE in vma.flags
    out.advice.extend(vm_flags.ADVICE[flag] for flag in vma.flags if flag in vm_flags.ADVICE)
    out.name = vmas.anonymous_name(mapping)
    if shared_memory.is_memory(mapping):
        out.kind = pb.Vma.SHARED
        out.shared = shared.segments[shared_memory.key_of(mapping)].index
        out.offset = mapping.offset
        out.may_write = vm_flags.MAY_WRITE in vma.flags
        return out.kind
    if (segment := shared.behind(mapping)) is not None:
        out.kind, out.shared, out.offset = pb.Vma.MEMORY_PRIVATE, segment.index, mapping.offset
        return out.kind
    if vm_flags.HUGETLB in vma.flags:
        out.kind, out.huge_page = pb.Vma.ANONYMOUS, vma.page_size
        return out.kind
    index = None if vmas.is_anonymous(mapping) else files.index(mapping.name, mapping.inode)
    if index is not None:
        out.kind = pb.Vma.FILE_SHARED if mapping.shared else pb.Vma.FILE_PRIVATE
        out.file, out.offset = index, mapping.offset
        out.may_write = mapping.shared and vm_flags.MAY_WRITE in vma.flags
    elif mapping.shared:
        raise CheckpointFailed(
            f"{os.fsdecode(mapping.name)}, which is mapped shared at {mapping.start:#x}, was replaced by another file"
        )
    else:
        out.kind = pb.Vma.ANONYMOUS
    return out.kind


@dataclass
class Ranges:
    """Where to find the pages of a process that are its own."""

    pid: int
    """Whose memory to read: the snapshot's, or the frozen process's own."""
    private: list[tuple[int, int]]
    """The private mappings, by address."""
    whole: list[tuple[int, int]]
    """Of those of files that are gone what is no guard region: every page that the file had is kept."""
    walk: Walk | None = None
    backed: list[tuple[int, int]] = field(default_factory=list)
    """Those of files and shared memory, by address: there a page of zeros is not the same as none."""

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
        """Its own pages: those that are as they were before, and those that are to be read."""
        found = self.find()
        if before is None:
            return Cut([], found)
        return cut(found, replace(before, written=[*before.written, *self.whole]))


class PageWriter:
    """Writes pages to the store with a few workers. A context manager: leaving it ends them."""

    def __init__(self, writer: SnapshotWriter, progress: Progress) -> None:
        self._writer = writer
        self._progress = progress
        self._pool = Workers(_WORKERS)
        self._buffers = threading.local()
        self._lock = threading.Lock()
        self._done = self._expected = 0

    def __enter__(self) -> PageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def expect(self, size: int) -> None:
        """Announce bytes to come, for the progress."""
        self._expected += size

    def store_private(self, own: Ranges, pages: Cut, before: Before | None, table: pb.PageTable) -> None:
        """Write a process's own pages; the numbers in the table are addresses / page size.

        Args:
            own: whose memory to read.
            pages: its own.
            before: what it was in the snapshot that the writer has as its base; None: nothing is as it was.
            table: to be filled.
        """
        read = partial(_read, own.pid)

        if before is None:
            self._store(pages.dirty, read, table, own.backed)
            return
        rows: list[int] = []
        for start, end in pages.clean:
            rows += before.table.blocks[before.table.between(start, end)]
        blocks = self._writer.adopt(rows)
        read_now = pb.PageTable()
        self._store(pages.dirty, read, read_now, own.backed)
        join(before.table, pages.clean, blocks, Columns.of(read_now), table)

    def store_file(self, fd: int, size: int, table: pb.PageTable) -> None:
        """Write the content of an open file; the numbers in the table count from its start."""
        ranges = union((start // PAGE * PAGE, page_up(end)) for start, end in filling.data(fd, 0, size))
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

    def store_shared(self, segment: Segment, table: pb.PageTable) -> None:
        """Write a segment of shared memory; the numbers in the table count from its start."""
        ranges = union([(at, at + page_up(len(content))) for at, content in segment.pieces.items()])
        starts = sorted(segment.pieces)
        self.expect(sum(end - start for start, end in ranges))

        def read(pieces: Sequence[tuple[int, int]], buffer: memoryview) -> None:
            position = 0
            for start, size in pieces:
                for at in starts[max(bisect_right(starts, start) - 1, 0) : bisect_left(starts, start + size)]:
                    content = segment.pieces[at]
                    begin, end = max(start, at), min(start + size, at + len(content))
                    if begin < end:
                        into = position + begin - start
                        buffer[into : into + end - begin] = content[begin - at : end - at]
                        rest = page_up(end) - end
                        buffer[into + end - begin : into + end - begin + rest] = bytes(rest)
                position += size

        self._store(ranges, read, table)

    def _store(
        self, ranges: Sequence[tuple[int, int]], read: _Read, table: pb.PageTable, zeros: Sequence[Range] = ()
    ) -> None:
        """Store ranges; those of their pages that are all zeros only where they lie in `zeros`, too."""
        # The pages of a table are listed by address, so the results are taken in the order of the chunks.
        waiting: deque[Future[_Stored]] = deque()
        for chunk in _chunks(ranges):
            waiting.append(self._pool.submit(self._work, chunk, read, zeros))
            if len(waiting) > 2 * _WORKERS:
                _list(table, waiting.popleft().result())
        for future in waiting:
            _list(table, future.result())

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
        """This worker's buffer: fresh memory for each chunk would cost a page fault a page."""
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
        hint = "Linux 6.13 and 6.14 do not show guard regions (MADV_GUARD_INSTALL)"
        raise CheckpointFailed(f"{why}: {error.strerror}", advice=hint) from error


def _chunks(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut ranges into lists of (address, size) of up to _CHUNK bytes each, on borders of blocks."""
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


def _list(table: pb.PageTable, result: _Stored) -> None:
    starts, counts, blocks = result
    table.starts.extend(starts)
    table.counts.extend(counts)
    table.blocks.extend(blocks)


def _keep(chunk: Sequence[tuple[int, int]], kept: Sequence[Range], zero: bytearray) -> None:
    """Mark the pages of a chunk that lie in `kept` as ones that are not zero."""
    kept = kept[max(bisect_left(kept, chunk[0]) - 1, 0) : bisect_left(kept, (sum(chunk[-1]), 0))]
    at = 0  # pages, in the chunk
    for address, size in chunk if kept else ():
        for start, end in intersection([(address, address + size)], kept):
            first, last = at + (start - address) // PAGE, at + (end - address) // PAGE
            zero[first:last] = bytes(last - first)
        at += size // PAGE


def _blocks(chunk: Sequence[tuple[int, int]], zero: bytearray) -> _Stored:
    """Cut a chunk into blocks without zero pages: page number, pages, and offset in the chunk's buffer of each."""
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
    """List the runs of pages that are not zero within one block."""
    at = flags.find(0)
    while at >= 0:
        end = flags.find(1, at)
        if end < 0:
            end = len(flags)
        starts.append(page + at)
        counts.append(end - at)
        positions.append((base + at) * PAGE)
        at = flags.find(0, end)

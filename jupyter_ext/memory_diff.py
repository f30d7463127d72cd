"""How much memory two snapshots share, and whether the bytes at an address are the same in both.

Blocks are compared by their hashes, so that little is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.procfs import PAGE
from torpor.store import SnapshotReader


class Memory:
    """The memory of one snapshot: its blocks, and the private pages of the tree's root."""

    def __init__(self, reader: SnapshotReader) -> None:
        """Look at an open snapshot of a process tree. Raises ImageDamaged."""
        self._reader = reader
        blocks = reader.blocks
        self.blocks = {blocks.hash(row): blocks.lengths[row] for row in range(len(blocks))}
        """Bytes by hash."""
        process = reading.read(reader).processes[0]
        pages = process.memory.pages
        runs = sorted(zip(pages.starts, pages.counts, pages.blocks, strict=True))
        self._starts = [start for start, _, _ in runs]
        self._runs = runs
        kinds = (pb.Vma.ANONYMOUS, pb.Vma.FILE_PRIVATE)
        self._private = [range(vma.start, vma.end) for vma in process.memory.vmas if vma.kind in kinds]
        self._last: tuple[int, bytes] = (-1, b"")

    def is_private(self, address: int) -> bool:
        """Whether the memory at an address is the process's own."""
        return any(address in area for area in self._private)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """What lies between two addresses: start, end, block and offset in it; what is not told is zero."""
        at = max(bisect_right(self._starts, start // PAGE) - 1, 0)
        for first, count, block in self._runs[at:]:
            here, there = first * PAGE, (first + count) * PAGE
            if here >= end:
                return
            if there > start:
                begin = max(here, start)
                yield begin, min(there, end), block, begin - here

    def hash(self, block: int) -> bytes:
        """The hash of a block."""
        return self._reader.blocks.hash(block)

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two addresses. Raises ImageDamaged, StoreError."""
        content = bytearray(end - start)
        for begin, stop, block, offset in self.pieces(start, end):
            if self._last[0] != block:
                self._last = block, self._reader.read_block(block)
            content[begin - start : stop - start] = self._last[1][offset : offset + stop - begin]
        return bytes(content)


def shared(mine: Memory, theirs: Memory) -> dict[str, int]:
    """Bytes of blocks that both have, and that only one has."""
    both = mine.blocks.keys() & theirs.blocks.keys()
    common = sum(mine.blocks[block] for block in both)
    return {
        "shared": common,
        "only_here": sum(mine.blocks.values()) - common,
        "only_there": sum(theirs.blocks.values()) - common,
    }


def changed(mine: Memory, theirs: Memory, address: int, size: int) -> bool:
    """Whether the bytes at an address differ; of memory that is not private nothing is known: it counts as the same."""
    if not (size and mine.is_private(address) and theirs.is_private(address)):
        return False
    end = address + size
    edges = {address, end}
    for memory in (mine, theirs):
        for begin, stop, _, _ in memory.pieces(address, end):
            edges |= {begin, stop}
    cuts = sorted(edges)
    return any(_differ(mine, theirs, *span) for span in pairwise(cuts))


def _differ(mine: Memory, theirs: Memory, start: int, end: int) -> bool:
    """For a span that lies in one block or in none, in each."""
    here, there = (next(memory.pieces(start, end), None) for memory in (mine, theirs))
    if here is None and there is None:
        return False
    if here and there and here[3] == there[3] and mine.hash(here[2]) == theirs.hash(there[2]):
        return False
    return mine.read(start, end) != theirs.read(start, end)

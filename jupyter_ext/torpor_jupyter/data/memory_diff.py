"""How much memory two snapshots share, and whether the bytes at an address are the same in both.

Blocks are compared by their hashes. So only blocks are read that one of the two does not have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from mmap import PAGESIZE as PAGE

from blake3 import blake3

from torpor.image import Vma, read
from torpor.store import SnapshotReader


class Memory:
    """The memory of one snapshot: its blocks, and the private pages of the tree's root."""

    def __init__(self, reader: SnapshotReader) -> None:
        """Read the page table of an open snapshot. Raises ImageDamaged."""
        self._reader = reader
        blocks = reader.blocks
        self.blocks = {blocks.hash(row): row for row in range(len(blocks))}
        """Blocks by hash."""
        process = read(reader).processes[0]
        pages = process.memory.pages
        runs = sorted(zip(pages.starts, pages.counts, pages.blocks, strict=True))
        self._starts = [start for start, _, _ in runs]
        self._runs = runs
        kinds = (Vma.ANONYMOUS, Vma.FILE_PRIVATE)
        self._private = [range(vma.start, vma.end) for vma in process.memory.vmas if vma.kind in kinds]
        self._last: tuple[int, bytes] = (-1, b"")

    def is_private(self, address: int) -> bool:
        """Whether the memory at an address is private to the process."""
        return any(address in area for area in self._private)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The blocks between two addresses, as (start, end, block, offset in it). Bytes outside of them are zero."""
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

    def length(self, block: int) -> int:
        """The length of a block in bytes."""
        return self._reader.blocks.lengths[block]

    def pages(self, blocks: Iterable[bytes]) -> dict[bytes, int]:
        """The hashes of all pages of these blocks, with the length of each page. Raises ImageDamaged, StoreError."""
        found = {}
        for block in blocks:
            content = memoryview(self._reader.read_block(self.blocks[block]))
            for start in range(0, len(content), PAGE):
                page = content[start : start + PAGE]
                found[blake3(page).digest()] = len(page)
        return found

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two addresses. Raises ImageDamaged, StoreError."""
        content = bytearray(end - start)
        for begin, stop, block, offset in self.pieces(start, end):
            if self._last[0] != block:
                self._last = block, self._reader.read_block(block)
            content[begin - start : stop - start] = self._last[1][offset : offset + stop - begin]
        return bytes(content)


def shared(mine: Memory, theirs: Memory) -> dict[str, int]:
    """How many bytes both have, and how many only one has. Raises ImageDamaged, StoreError."""
    both = mine.blocks.keys() & theirs.blocks.keys()
    # Where some pages of a block were written, a later snapshot has the others in another block: see unchanged.py.
    here, there = (memory.pages(memory.blocks.keys() - both) for memory in (mine, theirs))
    again = sum(here[page] for page in here.keys() & there.keys())
    return {
        "shared": sum(mine.length(mine.blocks[block]) for block in both) + again,
        "only_here": sum(here.values()) - again,
        "only_there": sum(there.values()) - again,
    }


def changed(mine: Memory, theirs: Memory, address: int, size: int) -> bool:
    """Whether the bytes at an address differ. Memory that is not private is not compared, and counts as the same."""
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
    """Whether a span differs that lies in at most one block of each snapshot."""
    here, there = (next(memory.pieces(start, end), None) for memory in (mine, theirs))
    if here is None and there is None:
        return False
    if here and there and here[3] == there[3] and mine.hash(here[2]) == theirs.hash(there[2]):
        return False
    return mine.read(start, end) != theirs.read(start, end)

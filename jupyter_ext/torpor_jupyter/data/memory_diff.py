"""How much memory two snapshots share, and whether the bytes at an address are the same in both.

Blocks are compared by their hashes. So only pages are read that one of the two does not have in such a block.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from mmap import PAGESIZE as PAGE

from blake3 import blake3

from torpor.errors import ImageDamaged
from torpor.image import Tree, Vma, pieces, read
from torpor.store import SnapshotReader


class Memory:
    """The memory of one snapshot: its blocks, and the private pages of the tree's root."""

    def __init__(self, reader: SnapshotReader) -> None:
        """Read the page table of an open snapshot. Raises ImageDamaged."""
        self._reader = reader
        tree = read(reader)
        needed = self._find_needed(tree)
        self.blocks = {self.hash(block): block for block in needed}
        """Blocks by hash."""
        self.needed = {self.hash(block): pages for block, pages in needed.items()}
        """The pages of each block that the tree needs: bit k is set for page k."""
        process = tree.processes[0]
        self._runs = sorted(pieces(process.memory.pages))
        self._starts = [run.page for run in self._runs]
        kinds = (Vma.ANONYMOUS, Vma.FILE_PRIVATE)
        self._private = [range(vma.start, vma.end) for vma in process.memory.vmas if vma.kind in kinds]
        self._last: tuple[int, bytes] = (-1, b"")

    def _find_needed(self, tree: Tree) -> dict[int, int]:
        found: dict[int, int] = {}
        tables = chain((process.memory.pages for process in tree.processes), (one.pages for one in tree.shared))
        for table in chain(tables, (one.pages for one in tree.bundles)):
            for _, count, block, skip in pieces(table):
                if (skip + count) * PAGE > self._reader.block(block)[2]:
                    raise ImageDamaged(
                        f"snapshot {self._reader.info.id} is damaged: it names more of a block than it has"
                    )
                found[block] = found.get(block, 0) | ((1 << count) - 1) << skip
        return found

    def is_private(self, address: int) -> bool:
        """Whether the memory at an address is private to the process."""
        return any(address in area for area in self._private)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The blocks between two addresses, as (start, end, block, offset in it). Bytes outside of them are zero."""
        at = max(bisect_right(self._starts, start // PAGE) - 1, 0)
        for first, count, block, skip in self._runs[at:]:
            here, there = first * PAGE, (first + count) * PAGE
            if here >= end:
                return
            if there > start:
                begin = max(here, start)
                yield begin, min(there, end), block, skip * PAGE + begin - here

    def hash(self, block: int) -> bytes:
        """The hash of a block."""
        return self._reader.blocks.hash(block)

    def pages_besides(self, others: Mapping[bytes, int]) -> set[bytes]:
        """The hashes of all pages but those in `others`, which is like `needed`. Raises ImageDamaged, StoreError."""
        found = set()
        for block, pages in self.needed.items():
            if left := pages & ~others.get(block, 0):
                content = memoryview(self._reader.read_block(self.blocks[block]))
                for number in range(left.bit_length()):
                    if left >> number & 1:
                        found.add(blake3(content[number * PAGE : (number + 1) * PAGE]).digest())
        return found

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two addresses. Raises ImageDamaged, StoreError."""
        content = bytearray(end - start)
        for begin, stop, block, offset in self.between(start, end):
            if self._last[0] != block:
                self._last = block, self._reader.read_block(block)
            content[begin - start : stop - start] = self._last[1][offset : offset + stop - begin]
        return bytes(content)


def shared(mine: Memory, theirs: Memory) -> dict[str, int]:
    """How many bytes both have, and how many only one has. Raises ImageDamaged, StoreError."""
    both = {block: pages & theirs.needed.get(block, 0) for block, pages in mine.needed.items()}
    # A later snapshot may have pages in another block that were not written: see torpor.objects.memory.incremental.
    here, there = (memory.pages_besides(both) for memory in (mine, theirs))
    again = here & there
    return {
        "shared": (sum(pages.bit_count() for pages in both.values()) + len(again)) * PAGE,
        "only_here": len(here - again) * PAGE,
        "only_there": len(there - again) * PAGE,
    }


def changed(mine: Memory, theirs: Memory, address: int, size: int) -> bool:
    """Whether the bytes at an address differ. Memory that is not private is not compared, and counts as the same."""
    if not (size and mine.is_private(address) and theirs.is_private(address)):
        return False
    end = address + size
    edges = {address, end}
    for memory in (mine, theirs):
        for begin, stop, _, _ in memory.between(address, end):
            edges |= {begin, stop}
    cuts = sorted(edges)
    return any(_differ(mine, theirs, *span) for span in pairwise(cuts))


def _differ(mine: Memory, theirs: Memory, start: int, end: int) -> bool:
    """Whether a span differs that lies in at most one block of each snapshot."""
    here, there = (next(memory.between(start, end), None) for memory in (mine, theirs))
    if here is None and there is None:
        return False
    if here and there and here[3] == there[3] and mine.hash(here[2]) == theirs.hash(there[2]):
        return False
    return mine.read(start, end) != theirs.read(start, end)

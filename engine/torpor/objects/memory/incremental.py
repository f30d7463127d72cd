"""Pages that were not written since the previous snapshot: they are not read, but keep their places in its blocks.

A row of a page table may lead into the middle of a block, so a page that was written does not take its block along. But
the store keeps blocks whole. So a process gives up a block of which it needs less than half: the rest is read, and
stored in other blocks. Thus a snapshot's blocks take at most twice the space of its pages. Written pages are stored
apart from such a rest: what a program writes often gets blocks of its own, which end as a whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece
from torpor.procfs import PAGE
from torpor.util.ranges import Range, split, subtract, union

BLOCK_PAGES = 16
"""The most pages in a block. No block crosses a multiple of this in the address space, so that an unchanged one is
found again in another snapshot. 64 KiB: smaller blocks cost more to hash and to list, larger ones are shared less
often.
"""


class Columns(NamedTuple):
    """A page table, sorted by address."""

    starts: array[int]
    counts: array[int]
    blocks: array[int]
    skips: array[int]

    @classmethod
    def of(cls, table: pb.PageTable) -> Columns:
        """The page table of an image."""
        skips = array("Q", table.skips or bytes(8 * len(table.starts)))
        return cls(array("Q", table.starts), array("Q", table.counts), array("Q", table.blocks), skips)

    @classmethod
    def empty(cls) -> Columns:
        """A table without rows."""
        return cls(array("Q"), array("Q"), array("Q"), array("Q"))

    def rows(self, start: int, end: int) -> list[array[int]]:
        """The columns of the rows that have pages from one page up to another."""
        first, last = bisect_left(self.starts, start), bisect_left(self.starts, end)
        if first and self.starts[first - 1] + self.counts[first - 1] > start:
            first -= 1
        return [column[first:last] for column in self]

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The part of the table from one page up to another."""
        for page, count, block, skip in zip(*self.rows(start, end), strict=True):
            less = max(start - page, 0)
            yield Piece(page + less, min(page + count, end) - page - less, block, skip + less)

    def within(self, ranges: Sequence[Range]) -> Columns:
        """What the table says of some ranges, which are sorted by address."""
        found = self.empty()
        row = 0
        for start, end in ranges:
            first, stop = start // PAGE, end // PAGE
            row = max(bisect_right(self.starts, first, row) - 1, row)
            if row < len(self.starts) and self.starts[row] + self.counts[row] <= first:
                row += 1
            last = bisect_left(self.starts, stop, row)
            if row == last:
                continue
            at = len(found.starts)
            for column, mine in zip(found, self, strict=True):
                column.extend(mine[row:last])
            if (before := first - found.starts[at]) > 0:
                found.starts[at] += before
                found.counts[at] -= before
                found.skips[at] += before
            if (behind := found.starts[-1] + found.counts[-1] - stop) > 0:
                found.counts[-1] -= behind
            row = last - 1  # the next range may begin in the same row
        return found

    def hardly_needed(self, lengths: Sequence[int]) -> list[Range]:
        """The ranges of the rows in blocks of which less than half is in the table.

        Args:
            lengths: the size of each block, in bytes.
        """
        needed: dict[int, int] = defaultdict(int)
        for block, count in zip(self.blocks, self.counts, strict=True):
            needed[block] += count
        hardly = {block for block, count in needed.items() if 2 * count * PAGE < lengths[block]}
        if not hardly:
            return []
        rows = zip(self.starts, self.counts, self.blocks, strict=True)
        return [(start * PAGE, (start + count) * PAGE) for start, count, block in rows if block in hardly]

    def add_to(self, table: pb.PageTable) -> None:
        """Append the rows to the page table of an image, which is empty."""
        table.starts.extend(self.starts)
        table.counts.extend(self.counts)
        table.blocks.extend(self.blocks)
        if any(self.skips):
            table.skips.extend(self.skips)


@dataclass
class Before:
    """A process in the previous snapshot."""

    table: Columns
    written: list[Range]
    """What may have been written since, in any order."""
    lengths: Sequence[int]
    """The size of each of that snapshot's blocks, in bytes."""


@dataclass
class Cut:
    """A process's own pages in two parts, each sorted by address. Unwritten pages of zeros are in neither."""

    kept: Columns
    """What the previous snapshot's table says of those that are as they were."""
    dirty: list[Range]
    """To be read, and stored in blocks that do not cross from one range to the next."""


def cut(own: Sequence[Range], before: Before) -> Cut:
    """Split a process's own pages, sorted by address."""
    written = union(before.written)
    clean = subtract(own, written)
    kept = before.table.within(clean)
    if given_up := kept.hardly_needed(before.lengths):
        clean = subtract(clean, given_up)
        kept = before.table.within(clean)
    return Cut(kept, split(subtract(own, clean), written))


def join(kept: Columns, dirty: Columns, table: pb.PageTable) -> None:
    """Fill an empty page table with the rows of both, by address."""
    both = [mine + other for mine, other in zip(kept, dirty, strict=True)]
    order = sorted(range(len(both[0])), key=both[0].__getitem__)  # of two sorted parts: that takes one merge
    Columns(*(array("Q", map(column.__getitem__, order)) for column in both)).add_to(table)

"""Pages that were not written since the previous snapshot: their blocks are reused, and the pages are not read.

A block is reused whole or not at all: if one of its pages was written or is gone, all of it is read. It is then stored
in parts, written pages apart from unwritten ones, so that next time only the former are read: what a program writes
often gets blocks of its own, maybe of one page. If all pages of a block are written, they become one block again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import add
from typing import NamedTuple

from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE
from torpor.util.ranges import Range, intersection, split, subtract, union

BLOCK_PAGES = 16
"""The most pages in a block. No block crosses a multiple of this in the address space, so that an unchanged one is
found again in the next snapshot. 64 KiB: smaller blocks cost more to hash and to list, larger ones are shared less
often.
"""


class Columns(NamedTuple):
    """A page table, sorted by address."""

    starts: array[int]
    counts: array[int]
    blocks: array[int]

    @classmethod
    def of(cls, table: pb.PageTable) -> Columns:
        """The page table of an image."""
        return cls(array("Q", table.starts), array("Q", table.counts), array("Q", table.blocks))

    def between(self, start: int, end: int) -> slice:
        """The rows between two addresses."""
        return slice(bisect_left(self.starts, start // PAGE), bisect_left(self.starts, end // PAGE))

    def touched(self, written: Sequence[Range], edges: Iterable[int]) -> list[Range]:
        """The written ranges, extended to whole rows; and the rows that cross one of the `edges`."""
        starts = self.starts
        ends = array("Q", map(add, starts, self.counts))
        found: list[Range] = []
        for start, end in written:
            first = bisect_right(starts, start // PAGE) - 1
            last = bisect_left(starts, end // PAGE, max(first, 0)) - 1
            begin = starts[first] * PAGE if first >= 0 and ends[first] * PAGE > start else start
            found.append((begin, max(end, ends[last] * PAGE) if last >= 0 else end))
        for edge in edges:
            row = bisect_left(starts, edge // PAGE) - 1
            if row >= 0 and ends[row] * PAGE > edge:
                found.append((starts[row] * PAGE, ends[row] * PAGE))
        return found


@dataclass
class Before:
    """A process in the previous snapshot."""

    table: Columns
    written: list[Range]
    """What may have been written since, in any order."""


@dataclass
class Cut:
    """A process's own pages in two parts, each sorted by address."""

    clean: list[Range]
    """As in the previous snapshot."""
    dirty: list[Range]
    """To be read, and stored in blocks that do not cross from one range to the next."""


def cut(own: Sequence[Range], before: Before) -> Cut:
    """Split a process's own pages, sorted by address."""
    written = union(before.written)
    # If a row reaches beyond these pages, a part of it is gone: read the rest again.
    dirty = intersection(own, union(before.table.touched(written, chain.from_iterable(own))))
    return Cut(subtract(own, dirty), split(dirty, written))


def join(before: Columns, clean: Sequence[Range], blocks: Sequence[int], dirty: Columns, table: pb.PageTable) -> None:
    """Fill a page table.

    Args:
        before: the table in the previous snapshot.
        clean: the ranges that are as they were there.
        blocks: for each row of these, the index of its block in this snapshot.
        dirty: the rows of the other ranges.
        table: the one to fill.
    """
    starts, counts, numbers = Columns.of(pb.PageTable())
    done = taken = 0
    for start, end in clean:
        rows = before.between(start, end)
        upto = bisect_left(dirty.starts, start // PAGE, done)
        count = rows.stop - rows.start
        starts += dirty.starts[done:upto] + before.starts[rows]
        counts += dirty.counts[done:upto] + before.counts[rows]
        numbers += dirty.blocks[done:upto] + array("Q", blocks[taken : taken + count])
        done, taken = upto, taken + count
    table.starts.extend(starts + dirty.starts[done:])
    table.counts.extend(counts + dirty.counts[done:])
    table.blocks.extend(numbers + dirty.blocks[done:])

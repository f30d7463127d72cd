"""Pages that were not written since the snapshot before: its blocks are taken over, and they are not read again.

Only whole blocks are: at the edges of what a process has, and where a page was written, the whole block is read. A
block never crosses a multiple of BLOCK_PAGES, so that the rows of the table before whose start lies in such a window
are all that there is in it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE

BLOCK_PAGES = 16
"""Pages in a block at most: blocks lie on multiples of this in the address space, so that an unchanged one is found
again in the next snapshot. 64 KiB: smaller ones cost more to hash and to list, larger ones are shared less often."""
_WINDOW = BLOCK_PAGES * PAGE

Range = tuple[int, int]
"""Start and end, bytes."""


class Columns(NamedTuple):
    """A page table, by address."""

    starts: array[int]
    counts: array[int]
    blocks: array[int]

    @classmethod
    def of(cls, table: pb.PageTable) -> Columns:
        """Those of an image."""
        return cls(array("Q", table.starts), array("Q", table.counts), array("Q", table.blocks))

    def between(self, start: int, end: int) -> slice:
        """The rows of two addresses."""
        return slice(bisect_left(self.starts, start // PAGE), bisect_left(self.starts, end // PAGE))


@dataclass
class Before:
    """What a process was in the snapshot before."""

    table: Columns
    written: list[Range]
    """What may have been written since, sorted by address."""


@dataclass
class Cut:
    """A process's own pages, in two parts, each sorted by address."""

    clean: list[Range]
    """As in the snapshot before."""
    dirty: list[Range]
    """To be read."""


def cut(own: Iterable[Range], written: Iterable[Range]) -> Cut:
    """Part a process's own pages, sorted by address, by what may have been written, in any order."""
    result = Cut([], [])
    holes = _windows(written)
    hole = next(holes, None)
    for start, end in own:
        position = start
        first, last = -(-start // _WINDOW) * _WINDOW, end // _WINDOW * _WINDOW
        while first < last:
            while hole and hole[1] <= first:
                hole = next(holes, None)
            stop = min(last, hole[0]) if hole else last
            if first < stop:
                if position < first:
                    result.dirty.append((position, first))
                result.clean.append((first, stop))
                position = stop
            first = min(hole[1], last) if hole else last
        if position < end:
            result.dirty.append((position, end))
    return result


def _windows(ranges: Iterable[Range]) -> Iterator[Range]:
    """The windows that ranges touch, joined."""
    begin = end = 0
    for start, stop in sorted(ranges):
        start, stop = start // _WINDOW * _WINDOW, -(-stop // _WINDOW) * _WINDOW  # noqa: PLW2901
        if start > end:
            if begin < end:
                yield begin, end
            begin = start
        end = max(end, stop)
    if begin < end:
        yield begin, end


def join(before: Columns, clean: Sequence[Range], blocks: Sequence[int], dirty: Columns, table: pb.PageTable) -> None:
    """Fill a page table.

    Args:
        before: the table in the snapshot before.
        clean: what is as it was there.
        blocks: for each of its rows there the block now.
        dirty: the rows of the rest.
        table: the one to fill.
    """
    done = taken = 0
    for start, end in clean:
        rows = before.between(start, end)
        upto = bisect_left(dirty.starts, start // PAGE)
        count = rows.stop - rows.start
        table.starts.extend(dirty.starts[done:upto] + before.starts[rows])
        table.counts.extend(dirty.counts[done:upto] + before.counts[rows])
        table.blocks.extend(dirty.blocks[done:upto])
        table.blocks.extend(blocks[taken : taken + count])
        done, taken = upto, taken + count
    table.starts.extend(dirty.starts[done:])
    table.counts.extend(dirty.counts[done:])
    table.blocks.extend(dirty.blocks[done:])

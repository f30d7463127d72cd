"""Page tables of an image: which page has its content in which block, and where in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

from torpor.image.image_pb2 import PageTable


class Piece(NamedTuple):
    """Pages that are adjacent in memory and in one block. All numbers are in pages."""

    page: int
    size: int
    block: int
    """The number of the block."""
    skip: int
    """The first page's offset in the block."""


def pieces(table: PageTable) -> Iterator[Piece]:
    """The rows of a page table."""
    return map(Piece, table.starts, table.counts, table.blocks, table.skips or repeat(0))


def is_whole(table: PageTable) -> bool:
    """Whether each row is there in all columns."""
    size = len(table.starts)
    return size == len(table.counts) == len(table.blocks) and len(table.skips) in (0, size)

"""The rows of a page table."""

from __future__ import annotations

import pytest

from torpor.image.image_pb2 import PageTable
from torpor.image.page_tables import Piece, is_whole, pieces


def test_without_offsets_all_are_0() -> None:
    """As in what a checkpoint without a series writes, and in older snapshots."""
    table = PageTable(starts=[7, 9], counts=[2, 1], blocks=[5, 4])
    assert is_whole(table)
    assert list(pieces(table)) == [Piece(7, 2, 5, 0), Piece(9, 1, 4, 0)]
    table.skips.extend([0, 3])
    assert is_whole(table)
    assert list(pieces(table)) == [Piece(7, 2, 5, 0), Piece(9, 1, 4, 3)]


@pytest.mark.parametrize("column", ["starts", "counts", "blocks", "skips"])
def test_each_row_is_in_all_columns(column: str) -> None:
    table = PageTable(starts=[7], counts=[2], blocks=[5], skips=[1])
    getattr(table, column).append(9)
    assert not is_whole(table)
    assert is_whole(PageTable())

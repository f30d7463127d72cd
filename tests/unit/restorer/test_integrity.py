"""Blocks are compared with their hashes beside the filling, all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from torpor.errors import ImageDamaged
from torpor.restorer.integrity import Verification


class Reader:
    """One whose last block is damaged, and that is slower than the filling."""

    def __init__(self) -> None:
        self.blocks = range(5000)
        self.awaited = threading.Event()
        """The tree is filled."""

    def verify_blocks(self, piece: Sequence[int]) -> None:
        self.awaited.wait(60)
        if self.blocks[-1] in piece:
            raise ImageDamaged("the last block")


@pytest.fixture
def reader() -> Reader:
    return Reader()


def verification(reader: Any) -> Verification:
    return Verification(reader)


def test_a_damaged_block_is_found_when_the_filling_is_quicker(reader: Reader) -> None:
    found = verification(reader)
    found.start()

    def join() -> None:
        reader.awaited.set()
        type(found._thread).join(found._thread)

    with mock.patch.object(found._thread, "join", join), pytest.raises(ImageDamaged):
        found.finish()


def test_a_restore_that_failed_does_not_wait_for_all_blocks(reader: Reader) -> None:
    found = verification(reader)
    found.start()

    def join() -> None:
        reader.awaited.set()
        type(found._thread).join(found._thread)

    with mock.patch.object(found._thread, "join", join):
        found.end()
    found.finish()  # it never came to the last block


def test_blocks_that_others_compare_are_left_to_them(reader: Reader) -> None:
    reader.awaited.set()
    found = Verification(reader, {4999, 0})  # type: ignore[arg-type]
    found.start()
    found.finish()

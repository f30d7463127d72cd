"""Tables of system calls: many threads have one, each at an address of its own."""

from __future__ import annotations

import struct

from torpor.remote.batch import ENTRY_SIZE, ArgumentOf, Batch, Out, Result, Struct


def made() -> Batch:
    """A table with arguments of each kind."""
    batch = Batch()
    first = batch.add(1, 7, b"content")
    batch.add(2, Result(first), Out(24), ArgumentOf(first, 0))
    batch.add(3, Struct(struct.pack("<3Q", 16, 5, 99), (0,)))
    return batch


def test_a_table_differs_from_place_to_place_in_its_addresses_only() -> None:
    batch, here, there = made(), 1 << 20, 1 << 30
    tables = [batch.encode(place) for place in (here, there)]
    assert tables == [made().encode(place) for place in (here, there)], "the first place leaves no trace"
    words = [[word for (word,) in struct.iter_unpack("<Q", table)] for table in tables]
    moved = [(one, other) for one, other in zip(*words, strict=True) if one != other]
    assert [other - one for one, other in moved] == [there - here] * 5
    of_data = 3 * ENTRY_SIZE
    content, out, inside = (of_data + offset for offset in (0, 16, 48))
    assert [one - here for one, _ in moved] == [content, out, 8, inside, inside + 16]
    assert tables[0][content : content + 7] == b"content"


def test_a_copy_gets_calls_of_its_own() -> None:
    batch = made()
    copy = batch.copy()
    copy.add(4, b"more", Out(1))
    assert batch.numbers() == [1, 2, 3]
    assert batch.encode(0) == made().encode(0)
    assert copy.numbers() == [1, 2, 3, 4]
    at, size = copy.output_place(3, 1)
    assert (at, size) == (4 * ENTRY_SIZE + 96, 1)
    assert copy.encode(0)[at - 16 : at - 12] == b"more"

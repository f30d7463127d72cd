"""Two snapshots of a process: how much memory is the same, and whether the bytes at an address are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from mmap import PAGESIZE as PAGE

import pytest

from torpor.errors import ImageDamaged
from torpor.image import Tree, Vma
from torpor.image.image_pb2 import PageTable
from torpor.store import Store
from torpor_jupyter.data.memory_diff import Memory, changed, shared

ONE, TWO, THREE = (os.urandom(PAGE) for _ in range(3))
START = 16
"""The first page of the mapping."""


def memory(
    store: Store, blocks: Mapping[int, bytes], kind: Vma.Kind = Vma.ANONYMOUS, skips: Sequence[int] = ()
) -> Memory:
    """Save a process with a mapping of eight pages: these blocks, by the number of their first page in it, or without
    as many pages at the beginning of each as `skips` says."""
    tree = Tree()
    process = tree.processes.add()
    process.memory.vmas.add(start=START * PAGE, end=(START + 8) * PAGE, kind=kind)
    with store.writer("tree", {}) as writer:
        contents = list(blocks.values())
        rows = writer.add_blocks(memoryview(b"".join(contents)), [len(content) for content in contents])
        for first, row, content in zip(blocks, rows, contents, strict=True):
            process.memory.pages.starts.append(START + first)
            process.memory.pages.counts.append(len(content) // PAGE)
            process.memory.pages.blocks.append(row)
        for number, skip in enumerate(skips):
            process.memory.pages.counts[number] -= skip
        process.memory.pages.skips.extend(skips)
        info = writer.publish(tree.SerializeToString(), "")
    return Memory(store.open(info.id))


def differs(mine: Memory, theirs: Memory, start: int, size: int) -> bool:
    """Ask for bytes by their offset in the mapping."""
    return changed(mine, theirs, START * PAGE + start, size)


def test_blocks_of_both_are_counted_once(store: Store) -> None:
    found = shared(memory(store, {0: ONE, 1: TWO}), memory(store, {3: TWO, 4: THREE}))
    assert found == {"shared": PAGE, "only_here": PAGE, "only_there": PAGE}


def test_equal_pages_of_different_blocks_are_shared(store: Store) -> None:
    """When one page of a block was written, the next snapshot has the others in a new block."""
    found = shared(memory(store, {0: ONE + TWO}), memory(store, {0: ONE, 1: THREE}))
    assert found == {"shared": PAGE, "only_here": PAGE, "only_there": PAGE}


def test_of_a_block_that_is_needed_in_part_the_rest_does_not_count(store: Store) -> None:
    """When one page of a block was written, the next snapshot has the others in the old block."""
    before = memory(store, {0: ONE + TWO + THREE})
    now = memory(store, {0: os.urandom(PAGE), 1: ONE + TWO + THREE}, skips=(0, 1))
    assert shared(now, before) == {"shared": 2 * PAGE, "only_here": PAGE, "only_there": PAGE}
    assert not differs(now, before, PAGE, 2 * PAGE)
    assert differs(now, before, 0, PAGE)


def test_a_row_that_names_more_of_a_block_than_there_is(store: Store) -> None:
    tree = Tree()
    with store.writer("tree") as writer:
        blocks = writer.add_blocks(memoryview(ONE), [PAGE])
        table = PageTable(starts=[START], counts=[(1 << 32) - 1], blocks=blocks, skips=[0])
        tree.processes.add().memory.pages.CopyFrom(table)
        info = writer.publish(tree.SerializeToString(), "")
    with store.open(info) as reader, pytest.raises(ImageDamaged, match="more of a block"):
        Memory(reader)


def test_bytes_are_compared_and_not_blocks(store: Store) -> None:
    before, now = memory(store, {0: ONE + TWO}), memory(store, {0: ONE + THREE})
    assert not differs(now, before, 0, PAGE)
    assert differs(now, before, 0, 2 * PAGE)
    other = bytearray(ONE)
    other[100] ^= 1
    before, now = memory(store, {0: ONE}), memory(store, {0: bytes(other)})
    assert differs(now, before, 100, 1)
    assert not differs(now, before, 0, 100)
    assert not differs(now, before, 101, PAGE - 101)


def test_what_is_not_kept_is_zero(store: Store) -> None:
    nothing, zeros, one = memory(store, {}), memory(store, {0: bytes(PAGE)}), memory(store, {1: ONE})
    assert not differs(zeros, nothing, 0, 2 * PAGE)
    assert differs(one, nothing, 0, 2 * PAGE)
    assert differs(nothing, one, 0, 2 * PAGE)
    assert not differs(one, nothing, 0, PAGE)


def test_the_same_block_at_another_place_is_different(store: Store) -> None:
    assert differs(memory(store, {0: ONE + TWO}), memory(store, {1: ONE + TWO}), PAGE, PAGE)


def test_of_no_bytes_and_of_memory_that_is_shared_nothing_is_known(store: Store) -> None:
    before, now = memory(store, {0: ONE}), memory(store, {0: TWO})
    assert not differs(now, before, 0, 0)
    assert not differs(now, before, 9 * PAGE, PAGE), "it is not mapped"
    before, now = (memory(store, {0: page}, Vma.SHARED) for page in (ONE, TWO))
    assert not differs(now, before, 0, PAGE)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_array_over_several_blocks(store: Store, first: int) -> None:
    """It may begin and end in the middle of a page, and a change in any page is seen."""
    before = {0: ONE, 1: TWO, 2: THREE}
    now = {**before, first: os.urandom(PAGE)}
    assert differs(memory(store, now), memory(store, before), PAGE // 2, 2 * PAGE)

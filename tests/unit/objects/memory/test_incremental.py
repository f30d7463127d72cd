"""What is kept of the snapshot before, and what is read: together they say what a whole reading would."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from torpor.image import image_pb2 as pb
from torpor.objects.memory.incremental import BLOCK_PAGES, Before, Columns, cut, join
from torpor.procfs import PAGE
from torpor.util.ranges import Range

SPACE = 8 * BLOCK_PAGES
"""Pages."""

Content = dict[int, int]
"""What is in each page; 0 is a page of zeros."""
Blocks = dict[tuple[int, ...], int]
"""Numbers of the blocks that were stored, by their content."""

page_numbers = st.sets(st.integers(0, SPACE - 1))
contents = st.dictionaries(st.integers(0, SPACE - 1), st.integers(0, 3), max_size=SPACE)
rounds = st.lists(st.tuples(contents, page_numbers, page_numbers), min_size=1, max_size=4)
"""For each: what is written, what is gone, and what the kernel says besides."""


def ranges(of: set[int]) -> list[Range]:
    """Runs of pages, in bytes."""
    runs = groupby(enumerate(sorted(of)), lambda both: both[1] - both[0])
    found = [[page for _, page in run] for _, run in runs]
    return [(run[0] * PAGE, (run[-1] + 1) * PAGE) for run in found]


def pages(of: list[Range]) -> set[int]:
    """The pages of ranges, which do not overlap."""
    found = [page for start, end in of for page in range(start // PAGE, end // PAGE)]
    assert len(found) == len(set(found))
    return set(found)


def store(content: Content, of: list[Range], blocks: Blocks) -> Columns:
    """A page table as the writer makes it: runs of pages that are not zero, cut at multiples of a block."""
    rows: list[tuple[int, tuple[int, ...]]] = []
    for start, end in of:
        run: list[int] = []
        for page in range(start // PAGE, end // PAGE + 1):
            inside = page < end // PAGE and content[page] != 0
            if run and (not inside or page % BLOCK_PAGES == 0):
                rows.append((page - len(run), tuple(run)))
                run = []
            if inside:
                run.append(content[page])
    starts, counts = array("Q", (start for start, _ in rows)), array("Q", (len(run) for _, run in rows))
    numbers = array("Q", (blocks.setdefault(run, len(blocks)) for _, run in rows))
    return Columns(starts, counts, numbers, array("Q", [0] * len(rows)))


def lengths(blocks: Blocks) -> list[int]:
    """The size of each block, in bytes."""
    return [len(run) * PAGE for run in blocks]


def load(table: Columns, blocks: Blocks) -> Content:
    """What a table says; no page twice, and in the order of pages."""
    stored = {number: run for run, number in blocks.items()}
    found: Content = {}
    for start, count, block, skip in zip(*table, strict=True):
        assert start // BLOCK_PAGES == (start + count - 1) // BLOCK_PAGES
        assert not found or start > max(found)
        found.update(zip(range(start, start + count), stored[block][skip : skip + count], strict=True))
    needed = Counter[int]()
    for count, block in zip(table.counts, table.blocks, strict=True):
        needed[block] += count
    assert all(2 * count >= len(stored[block]) for block, count in needed.items()), "a block is kept for little"
    return found


@given(contents, rounds)
def test_the_joined_table_says_what_is_there(first: Content, later: list[tuple[Content, set[int], set[int]]]) -> None:
    blocks: Blocks = {}
    before, table = first, store(first, ranges(set(first)), blocks)
    for changes, gone, more in later:
        now = {page: content for page, content in {**before, **changes}.items() if page not in gone}
        # What the kernel says may be more than what has changed, and is never less.
        written = {page for page in now if page not in before or now[page] != before[page]} | more
        result = cut(ranges(set(now)), Before(table, ranges(written), lengths(blocks)))
        read, kept = pages(result.dirty), set(load(result.kept, blocks))
        assert read | kept | {page for page, content in now.items() if not content} == set(now)
        assert not read & kept
        assert not kept & written
        joined = pb.PageTable()
        join(result.kept, store(now, result.dirty, blocks), joined)
        before, table = now, Columns.of(joined)
        assert load(table, blocks) == {page: content for page, content in now.items() if content}


@given(page_numbers, st.lists(st.booleans(), min_size=SPACE, max_size=SPACE))
def test_a_part_of_a_table_says_what_the_table_says_there(part: set[int], there: list[bool]) -> None:
    content = {page: page + 1 for page in range(SPACE) if there[page]}
    blocks: Blocks = {}
    whole = store(content, ranges(set(content)), blocks)
    stored = {number: run for run, number in blocks.items()}
    found = [
        (start + k, stored[block][skip + k])
        for start, count, block, skip in zip(*whole.within(ranges(part)), strict=True)
        for k in range(count)
    ]
    assert found == [(page, content[page]) for page in sorted(part & content.keys())]
    first, last = min(part, default=0), max(part, default=0)
    pieces = [
        (page + k, stored[block][skip + k])
        for page, count, block, skip in whole.pieces(first, last)
        for k in range(count)
    ]
    assert pieces == [(page, content[page]) for page in range(first, last) if page in content]


def test_a_page_that_is_written_is_read_alone() -> None:
    content = dict.fromkeys(range(BLOCK_PAGES), 1)
    blocks: Blocks = {}
    table = store(content, ranges(set(content)), blocks)
    hot = [(5 * PAGE, 6 * PAGE)]
    assert cut(ranges(set(content)), Before(table, hot, lengths(blocks))).dirty == hot


def test_a_block_that_is_hardly_needed_is_given_up_and_its_rest_stored_apart() -> None:
    """Else a page would keep its whole block in the store; and what is written again and again would take the rest
    along each time."""
    content = dict.fromkeys(range(BLOCK_PAGES), 1)
    blocks: Blocks = {}
    everything = ranges(set(content))
    table = store(content, everything, blocks)
    half, more = BLOCK_PAGES // 2 * PAGE, (BLOCK_PAGES // 2 + 1) * PAGE
    assert cut(everything, Before(table, [(0, half)], lengths(blocks))).dirty == [(0, half)]
    given_up = cut(everything, Before(table, [(0, more)], lengths(blocks)))
    assert (given_up.dirty, len(given_up.kept.starts)) == ([(0, more), (more, BLOCK_PAGES * PAGE)], 0)
    table = store(content, given_up.dirty, blocks)
    assert cut(everything, Before(table, [(0, more)], lengths(blocks))).dirty == [(0, more)]


def test_pages_that_are_all_written_become_one_block_again() -> None:
    content = dict.fromkeys(range(BLOCK_PAGES), 1)
    blocks: Blocks = {}
    everything = ranges(set(content))
    table = store(content, [(0, PAGE), (PAGE, BLOCK_PAGES * PAGE)], blocks)
    assert len(table.starts) == 2
    assert cut(everything, Before(table, everything, lengths(blocks))).dirty == everything

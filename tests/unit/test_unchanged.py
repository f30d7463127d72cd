"""What is taken over from the snapshot before, and what is read: together they are the page table that a whole reading
gives."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from torpor.image import image_pb2 as pb
from torpor.objects.unchanged import BLOCK_PAGES, Columns, cut, join
from torpor.procfs import PAGE

SPACE = 8 * BLOCK_PAGES
"""Pages."""

Content = dict[int, int]
"""What is in each page; 0 is a page of zeros."""

pages = st.dictionaries(st.integers(0, SPACE - 1), st.integers(0, 3), max_size=SPACE)


def ranges(of: set[int]) -> list[tuple[int, int]]:
    """Runs of pages, in bytes."""
    found: list[tuple[int, int]] = []
    for page in sorted(of):
        if found and found[-1][1] == page * PAGE:
            found[-1] = (found[-1][0], (page + 1) * PAGE)
        else:
            found.append((page * PAGE, (page + 1) * PAGE))
    return found


def table(content: Content, of: list[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """A page table as the writer makes it: runs of pages that are not zero, cut at multiples of a block."""
    found: dict[int, tuple[int, ...]] = {}
    for start, end in of:
        run: list[int] = []
        for page in range(start // PAGE, end // PAGE + 1):
            inside = page < end // PAGE and content[page] != 0
            if run and (not inside or page % BLOCK_PAGES == 0):
                found[page - len(run)] = tuple(run)
                run = []
            if inside:
                run.append(content[page])
    return found


def columns(of: dict[int, tuple[int, ...]], blocks: dict[tuple[int, ...], int]) -> Columns:
    numbers = [blocks.setdefault(content, len(blocks)) for content in of.values()]
    return Columns(array("Q", of), array("Q", map(len, of.values())), array("Q", numbers))


@given(pages, pages, st.sets(st.integers(0, SPACE - 1)), st.sets(st.integers(0, SPACE - 1)))
def test_the_joined_table_is_the_whole_one(before: Content, changes: Content, gone: set[int], more: set[int]) -> None:
    now = {page: content for page, content in {**before, **changes}.items() if page not in gone}
    # What the kernel says may be more than what has changed, and is never less.
    written = {page for page in now if now[page] != before.get(page) or page not in before} | more
    result = cut(ranges(set(now)), ranges(written))
    read = {page for start, end in result.dirty for page in range(start // PAGE, end // PAGE)}
    kept = {page for start, end in result.clean for page in range(start // PAGE, end // PAGE)}
    assert read | kept == set(now)
    assert not read & kept
    assert not kept & written

    blocks: dict[tuple[int, ...], int] = {}
    old = columns(table(before, ranges(set(before))), blocks)
    taken = [block for start, end in result.clean for block in old.blocks[old.between(start, end)]]
    joined = pb.PageTable()
    join(old, result.clean, taken, columns(table(now, result.dirty), blocks), joined)
    assert Columns.of(joined) == columns(table(now, ranges(set(now))), blocks)

"""Memory that is filled from outside: every page gets its own content, and none that was not compared."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.store.store_content import flip, save
from torpor.arch.x86_64 import NR
from torpor.errors import ImageDamaged, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece
from torpor.objects.memory import filling
from torpor.objects.memory.filling import Filling, Part, layout, parts
from torpor.procfs import PAGE
from torpor.remote import memory, userfaultfd
from torpor.remote.children import forked
from torpor.remote.sys import pidfd_open, syscall
from torpor.store import BlockTable, Store

MIB = 1 << 20
HUGE = 2 << 20


def table(*blocks: tuple[int, int, int]) -> BlockTable:
    """Blocks as (pack, first page in it, pages)."""
    return BlockTable(
        offsets=array("Q", [first * PAGE for _, first, _ in blocks]),
        lengths=array("I", [pages * PAGE for _, _, pages in blocks]),
        packs=array("I", [pack for pack, _, _ in blocks]),
        hashes=bytearray(32 * len(blocks)),
    )


_row = st.tuples(st.integers(0, 3), st.integers(1, 16), st.integers(0, 1), st.integers(0, 40), st.integers(0, 3))


@given(st.lists(_row, max_size=40), st.sets(st.integers(16, 400), max_size=6))
def test_every_page_comes_from_its_own_place_within_one_mapping(
    drawn: list[tuple[int, int, int, int, int]], borders: set[int]
) -> None:
    rows: list[Piece] = []
    blocks: list[tuple[int, int, int]] = []
    wanted: dict[int, tuple[int, int]] = {}
    page, ends = 16, {0: 1, 1: 1}
    for gap, count, pack, apart, skip in drawn:
        page += gap
        first = ends[pack] + apart
        ends[pack] = first + skip + count
        rows.append(Piece(page, count, len(blocks), skip))
        blocks.append((pack, first, skip + count))
        wanted |= {page + k: (pack, first + skip + k) for k in range(count)}
        page += count
    there = table(*blocks)
    starts = sorted({0, *borders})
    mappings = [(start * PAGE, end * PAGE) for start, end in pairwise([*starts, 1 << 20])]
    got: dict[int, tuple[int, int]] = {}
    compared: list[int] = []
    for part in parts(rows, there, mappings):
        pack, begin = there.packs[part.blocks[0]], there.offsets[part.blocks[0]]
        assert {there.packs[block] for block in part.blocks} == {pack}
        assert begin + part.size == max(there.offsets[block] + there.lengths[block] for block in part.blocks)
        compared += part.blocks
        for address, size, at in zip(part.pieces[::3], part.pieces[1::3], part.pieces[2::3], strict=True):
            assert any(start <= address and address + size <= end for start, end in mappings)
            for k in range(0, size, PAGE):
                assert (address + k) // PAGE not in got
                got[(address + k) // PAGE] = pack, (begin + at + k) // PAGE
    assert got == wanted
    assert sorted(compared) == list(range(len(blocks)))


def test_a_part_is_small_enough_for_a_cache_and_has_no_large_gap() -> None:
    rows = [Piece(100 + 16 * k, 16, k, 0) for k in range(100)]
    found = list(parts(rows, table(*((0, 1 + 16 * k, 16) for k in range(100))), [(0, 1 << 40)]))
    assert max(part.size for part in found) == MIB
    assert [len(part.pieces) for part in found] == [3] * 7, "what is adjacent is one piece"
    far = list(parts(rows[:2], table((0, 1, 16), (0, 1000, 16)), [(0, 1 << 40)]))
    assert [part.size for part in far] == [16 * PAGE] * 2


def test_a_block_for_several_addresses_is_compared_once() -> None:
    found = list(parts([Piece(7, 1, 0, 0), Piece(3, 2, 0, 1)], table((0, 1, 4)), [(0, 1 << 40)]))
    assert found == [Part([0], 4 * PAGE, array("Q", [7 * PAGE, PAGE, 0, 3 * PAGE, 2 * PAGE, PAGE]))]


@pytest.mark.parametrize("piece", [Piece(16, 3, 0, 0), Piece(16, 2, 0, 1), Piece(16, 1, 1, 0)])
def test_a_run_longer_than_its_block_is_damage(piece: Piece) -> None:
    with pytest.raises(ImageDamaged):
        list(parts([piece], table((0, 1, 2)), [(0, 1 << 40)]))


def space(*mappings: tuple[int, int, int, int]) -> pb.AddressSpace:
    """Mappings as (start, end, kind, advice)."""
    found = pb.AddressSpace()
    for start, end, kind, advice in mappings:
        found.vmas.add(start=start, end=end, kind=kind, advice=[advice] if advice else [])
    return found


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("madvise", [(4 * HUGE, 6 * HUGE)]),
        ("always", [(HUGE, 2 * HUGE), (4 * HUGE, 6 * HUGE)]),
        ("never", []),
        ("", []),
    ],
)
def test_huge_pages_are_made_where_the_kernel_would_and_all_pages_are_there(
    mode: str, expected: list[tuple[int, int]]
) -> None:
    private, file = pb.Vma.ANONYMOUS, pb.Vma.FILE_PRIVATE
    there = space(
        (HUGE, 3 * HUGE, private, 0),
        (4 * HUGE, 7 * HUGE, private, 14),
        (8 * HUGE, 9 * HUGE, private, 15),
        (10 * HUGE, 11 * HUGE, file, 0),
    )
    there.vmas.add(start=12 * HUGE, end=13 * HUGE, kind=private, huge_page=HUGE)
    there.vmas.add(start=14 * HUGE, end=15 * HUGE, kind=private, droppable=True)
    runs = [(512, 600), (4 * 512 - 1, 1), (4 * 512, 600), (4 * 512 + 600, 500)]
    rows = [Piece(page, count, 0, 0) for page, count in runs]
    rows += [Piece(at * 512, 512, 0, 0) for at in (8, 10, 12, 14)]
    found = layout(there, rows, mode)
    assert found.huge == expected
    assert found.fresh == [(HUGE, 3 * HUGE), (4 * HUGE, 7 * HUGE), (8 * HUGE, 9 * HUGE)]
    assert found.advised == ([(4 * HUGE, 7 * HUGE)] if mode in ("always", "madvise") else [])


class Child:
    """A process with memory of its own, and a userfaultfd of it."""

    SIZE = 8 * HUGE

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, self.SIZE + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.start = -(-at // HUGE) * HUGE
        reader, writer = os.pipe()

        def wait() -> None:
            try:
                number = syscall(NR.userfaultfd, userfaultfd.OPEN_FLAGS)
            except OSError:
                number = -1
            os.write(writer, b"%d" % number)
            signal.pause()

        self.pid = forked(wait)
        number = int(os.read(reader, 8))
        os.close(reader)
        os.close(writer)
        self.fd = -1
        if number >= 0:
            pidfd = pidfd_open(self.pid)
            self.fd = syscall(NR.pidfd_getfd, pidfd, number, 0)
            os.close(pidfd)

    def watch(self, start: int, end: int) -> None:
        if self.fd < 0:
            pytest.skip("there is no userfaultfd here")
        userfaultfd.begin(self.fd)
        assert userfaultfd.register(self.fd, start, end, userfaultfd.MISSING)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self.fd >= 0:
            os.close(self.fd)


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.end()


CONTENT = [os.urandom(16 * PAGE) for _ in range(64)]


@pytest.mark.parametrize("watched", [False, True])
def test_what_is_filled_is_there_also_beside_pages_that_were_there_before(
    child: Child, tmp_path: Path, watched: bool
) -> None:
    store = Store(tmp_path / "store")
    save(store, *CONTENT)
    first = child.start // PAGE
    rows = [Piece(first + 16 * k + k % 2, 16 - k % 2, k, k % 2) for k in range(64)]
    before = [first + 3, first + 4, first + 40, first + 16 * 64]
    for page in before:
        memory.write(child.pid, page * PAGE, b"before")
    told: list[int] = []
    with store.open("latest") as reader, Filling(reader, told.append) as fill:
        fill.touch("it", child.pid, [(child.start, child.start + HUGE)] if watched else [])
        if watched:
            child.watch(child.start, child.start + child.SIZE)
        mappings = [(child.start, child.start + child.SIZE)]
        fill.add("it", child.pid, child.fd if watched else -1, parts(rows, reader.blocks, mappings))
        fill.finish()
    assert sum(told) == sum(row.size for row in rows) * PAGE
    for k, (page, count, _, skip) in enumerate(rows):
        assert memory.read(child.pid, page * PAGE, count * PAGE) == CONTENT[k][skip * PAGE :]
    assert memory.read(child.pid, before[-1] * PAGE, 6) == b"before", "what is not filled stays"


def test_no_content_that_has_changed_is_written(child: Child, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    info = save(store, *CONTENT)
    flip(Path(store.path, "packs", f"{info.packs[0]}.pack"), PAGE + 20 * 16 * PAGE)
    first = child.start // PAGE
    with store.open("latest") as reader, Filling(reader, None) as fill:
        rows = [Piece(first + 16 * k, 16, k, 0) for k in range(64)]
        fill.add("it", child.pid, -1, parts(rows, reader.blocks, [(child.start, child.start + child.SIZE)]))
        with pytest.raises(ImageDamaged, match="block 20"):
            fill.finish()
    assert memory.read(child.pid, child.start + 20 * 16 * PAGE, 16 * PAGE) == bytes(16 * PAGE)


def test_memory_that_cannot_be_written_is_told_with_its_process(child: Child, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    save(store, CONTENT[0])
    with store.open("latest") as reader, Filling(reader, None) as fill:
        fill.add("process 7", child.pid, -1, parts([Piece(1, 1, 0, 0)], reader.blocks, [(0, 1 << 40)]))
        with pytest.raises(RestoreFailed, match=r"process 7: filling its memory: Bad address"):
            fill.finish()


def test_a_block_that_is_longer_than_a_part(child: Child, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    content = os.urandom(3 * filling._PART)
    save(store, content)
    with store.open("latest") as reader, Filling(reader, None) as fill:
        piece = Piece(child.start // PAGE, len(content) // PAGE, 0, 0)
        fill.add("it", child.pid, -1, parts([piece], reader.blocks, [(child.start, child.start + child.SIZE)]))
        fill.finish()
    assert memory.read(child.pid, child.start, len(content)) == content

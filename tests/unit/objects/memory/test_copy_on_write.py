"""Memory in common since a fork, planned without any privilege: each has in the end what the image says of it, and no
more, whatever the tree looks like and whatever each process did since."""

from __future__ import annotations

from array import array
from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece
from torpor.objects.memory import copy_on_write, vdso
from torpor.objects.memory.copy_on_write import Room, Share
from torpor.objects.process import birth_order
from torpor.procfs import PAGE
from torpor.store import BlockTable

PLENTY = Room(1 << 40, 1 << 40, None)
BASE = 1 << 20
"""The first page of all memory here."""

Memory = dict[int, int]
"""What lies in a page."""


class Store:
    """Blocks whose pages are numbers."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, ...]] = []
        self._rows: dict[tuple[int, ...], int] = {}

    def put(self, pages: tuple[int, ...]) -> int:
        if pages not in self._rows:
            self._rows[pages] = len(self.blocks)
            self.blocks.append(pages)
        return self._rows[pages]

    def peek(self, block: int, skip: int, size: int) -> bytes:
        some = self.blocks[block][skip // PAGE : (skip + size) // PAGE]
        return b"".join(value.to_bytes(4, "little").ljust(PAGE, b"\0") for value in some)

    def table(self) -> BlockTable:
        lengths = array("I", [len(pages) * PAGE for pages in self.blocks])
        return BlockTable(array("Q", [0] * len(lengths)), lengths, array("I", [0] * len(lengths)), bytearray())


@st.composite
def trees(draw: st.DrawFn) -> tuple[pb.Tree, dict[int, Memory], Store]:
    """Processes that were forked of each other, each of which mapped, wrote, dropped and unmapped."""
    image, store = pb.Tree(), Store()
    memories: dict[int, Memory] = {}
    mappings: dict[int, list[tuple[int, int, int]]] = {}
    fresh = count(1)
    for pid in range(100, 100 + draw(st.integers(2, 6))):
        parent = draw(st.sampled_from([*memories])) if memories else 1
        memory = dict(memories[parent]) if memories else {page: next(fresh) for page in range(70)}
        maps = list(mappings[parent]) if memories else [(0, 40, 0), (50, 80, 2)]
        memory = {page: value for page, value in memory.items() if any(s <= page < e for s, e, _ in maps)}
        for step in draw(st.lists(st.sampled_from(("map", "write", "write all", "drop", "unmap", "exec")), max_size=8)):
            start = draw(st.integers(0, 60))
            end = start + draw(st.integers(1, 40))
            if step == "exec":
                if draw(st.integers(0, 9)) == 9:
                    memory, maps = {}, []
            elif step == "map":
                maps = _less(maps, start, end)
                memory = {page: value for page, value in memory.items() if not start <= page < end}
                maps.append((start, end, draw(st.integers(0, 2))))
            elif step == "unmap":
                maps = _less(maps, start, end)
                memory = {page: value for page, value in memory.items() if not start <= page < end}
            else:
                there = [page for first, last, _ in maps for page in range(max(first, start), min(last, end))]
                for page in there if step != "write" else there[:1]:
                    if step == "drop":
                        memory.pop(page, None)
                    else:
                        memory[page] = next(fresh) if draw(st.booleans()) else 1
        memories[pid], mappings[pid] = memory, maps
        process = image.processes.add(pid=pid, ppid=parent, pgid=100, sid=100)
        process.threads.add(tid=pid)
        process.memory.auxv = bytes([draw(st.integers(0, 9)) // 9])
        for first, last, kind in sorted(maps):
            vma = process.memory.vmas.add(start=(BASE + first) * PAGE, end=(BASE + last) * PAGE, prot=3)
            vma.kind = pb.Vma.FILE_PRIVATE if kind == 2 else pb.Vma.ANONYMOUS
            vma.noreserve = kind == 1
            vma.offset = vma.start if kind == 2 else 0
        page = 0
        while page < 128:
            run: list[int] = []
            while page + len(run) in memory and (not run or (page + len(run)) % 16):
                run.append(memory[page + len(run)])
            if run:
                skip = draw(st.integers(0, 2))  # as of a block whose other pages were written since
                process.memory.pages.starts.append(BASE + page)
                process.memory.pages.counts.append(len(run))
                process.memory.pages.blocks.append(store.put((*[7] * skip, *run, *[8] * draw(st.integers(0, 2)))))
                process.memory.pages.skips.append(skip)
            page += len(run) or 1
    return image, memories, store


def _less(maps: list[tuple[int, int, int]], start: int, end: int) -> list[tuple[int, int, int]]:
    left = [(first, min(last, start), kind) for first, last, kind in maps if first < start]
    right = [(max(first, end), last, kind) for first, last, kind in maps if last > end]
    return [one for one in left + right if one[0] < one[1]]


def played(top: birth_order.Member, shares: dict[int, Share], image: pb.Tree, store: Store) -> dict[int, Memory]:
    """What lies in each process's memory when a restore has done as planned."""
    found: dict[int, Memory] = {}
    by_pid = {process.pid: process for process in image.processes}

    def write(memory: Memory, pieces: list[Piece]) -> None:
        for page, size, block, skip in pieces:
            for k in range(size):
                memory[page + k - BASE] = store.blocks[block][skip + k]

    def run(member: birth_order.Member, inherited: Memory | None) -> None:
        share = shares.get(member.pid, Share())
        assert (inherited is None) == (share.first or not share.hulls)
        memory = dict(inherited or {})
        wide = [range(hull.start // PAGE - BASE, hull.end // PAGE - BASE) for hull in share.hulls]
        assert all(one.stop <= other.start for one, other in pairwise(wide))
        write(memory, share.given)
        assert all(any(page in hull for hull in wide) for page in memory)
        assert share.heirs <= {child.pid for child in member.children}
        for child in member.children:
            run(child, memory if child.pid in share.heirs else None)
        if member.pid not in by_pid:
            return
        space = by_pid[member.pid].memory
        own = {(vma.start, vma.end): vma for vma in space.vmas}
        kept: set[int] = set()
        for place in share.kept:
            (hull,) = [hull for hull in share.hulls if hull.start <= place[0] and place[1] <= hull.end]
            vma = own[place]
            assert (vma.kind, vma.noreserve) == (hull.kind, hull.noreserve)
            assert vma.offset - vma.start == hull.offset - hull.start or vma.kind == pb.Vma.ANONYMOUS
            kept |= set(range(place[0] // PAGE - BASE, place[1] // PAGE - BASE))
        memory = {page: value for page, value in memory.items() if page in kept}
        for start, end in share.stale:
            for page in range(start // PAGE - BASE, end // PAGE - BASE):
                assert page in kept
                memory.pop(page, None)
        write(memory, list(copy_on_write.remaining_pages(share, space.pages)))
        found[member.pid] = memory

    run(top, None)
    return found


@given(trees(), st.booleans())
def test_each_has_its_own(drawn: tuple[pb.Tree, dict[int, Memory], Store], peek: bool) -> None:
    image, memories, store = drawn
    top = birth_order.arrange(image, 1)
    space = store.peek if peek else None
    shares = copy_on_write.find(top, image, store.table(), vdso.host(), PLENTY, space)
    assert played(top, shares, image, store) == memories


def forked(pages: int, children: int) -> tuple[pb.Tree, Store]:
    """A process and its children, in each of which one page in 16 is its own."""
    image, store = pb.Tree(), Store()
    fresh = count(10000)
    for pid in range(100, 101 + children):
        process = image.processes.add(pid=pid, ppid=100 if pid > 100 else 1, pgid=100, sid=100)
        process.threads.add(tid=pid)
        process.memory.vmas.add(start=BASE * PAGE, end=(BASE + pages) * PAGE, prot=3, kind=pb.Vma.ANONYMOUS)
        for start in range(0, pages, 16):
            content = [start + k for k in range(16)]
            content[pid % 16] = next(fresh)
            process.memory.pages.starts.append(BASE + start)
            process.memory.pages.counts.append(16)
            process.memory.pages.blocks.append(store.put(tuple(content)))
    return image, store


def filled(image: pb.Tree, store: Store, space: Room = PLENTY) -> int:
    """The pages that a restore fills."""
    shares = copy_on_write.find(birth_order.arrange(image, 1), image, store.table(), vdso.host(), space, store.peek)
    given = sum(piece.size for share in shares.values() for piece in share.given)
    tables = {process.pid: process.memory.pages for process in image.processes}
    pieces = (
        piece
        for pid, table in tables.items()
        for piece in copy_on_write.remaining_pages(shares.get(pid, Share()), table)
    )
    return given + sum(piece.size for piece in pieces)


def test_only_what_differs_is_written() -> None:
    image, store = forked(pages=320, children=5)
    assert filled(image, store) == 320 + 5 * 320 // 16 * 2  # its own page, and that of the one that was filled first


def test_without_room_each_is_filled_by_itself() -> None:
    for space in (Room(1 << 20, 1 << 40, None), Room(1 << 40, 1 << 20, None), Room(1 << 40, 1 << 40, 7 << 20)):
        image, store = forked(pages=320, children=5)
        assert filled(image, store, space) == 6 * 320


def test_what_another_program_has_at_the_same_addresses_is_not_looked_at() -> None:
    image, store = forked(pages=32, children=1)
    image.processes[1].memory.auxv = b"executed"
    assert filled(image, store) == 64


def test_much_that_is_not_the_same_is_not_filled_before_the_births() -> None:
    image, store = pb.Tree(), Store()
    for pid in (100, 101, 102):
        process = image.processes.add(pid=pid, ppid=100 if pid > 100 else 1, pgid=100, sid=100)
        process.threads.add(tid=pid)
        process.memory.vmas.add(start=BASE * PAGE, end=(BASE + 160) * PAGE, prot=3, kind=pb.Vma.ANONYMOUS)
        for start in range(0, 160, 16):
            process.memory.pages.starts.append(BASE + start)
            process.memory.pages.counts.append(16)
            process.memory.pages.blocks.append(store.put(tuple(pid * 1000 + start + k for k in range(16))))
    shares = copy_on_write.find(birth_order.arrange(image, 1), image, store.table(), vdso.host(), PLENTY, store.peek)
    assert not shares

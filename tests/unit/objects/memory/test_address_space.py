"""Plans of address spaces, made without any privilege: what is mapped where, and every page read from its place."""

from __future__ import annotations

import mmap
import os
import resource
import struct
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.objects.arguments import numbers
from torpor import procfs
from torpor.arch.x86_64 import NR, TASK_SIZE
from torpor.errors import ImageDamaged, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.objects.memory import address_space, vdso, vmas
from torpor.objects.memory.address_space import Sources
from torpor.objects.memory.shared_memory import is_memory
from torpor.remote.children import forked
from torpor.remote.sys import syscall
from torpor.store import BlockTable

PAGE = 4096
PACKS = {0: 1000, 1: 1001}


def table_of(blocks: list[tuple[int, int, int]]) -> BlockTable:
    """Blocks as (pack, first page in it, pages)."""
    return BlockTable(
        offsets=array("Q", [first * PAGE for _, first, _ in blocks]),
        lengths=array("I", [pages * PAGE for _, _, pages in blocks]),
        packs=array("I", [pack for pack, _, _ in blocks]),
        hashes=bytearray(32 * len(blocks)),
    )


def sources(blocks: list[tuple[int, int, int]]) -> Sources:
    return Sources(files={0: 2000}, shared={0: 3000}, packs=PACKS, blocks=table_of(blocks))


SPARE = 1 << 40
_numbers = (st.integers(0, 3), st.integers(1, 16), st.integers(0, 1), st.integers(1, 24), st.integers(0, 3))
runs = st.lists(st.tuples(*_numbers), max_size=40)


@given(runs, st.booleans())
def test_every_page_is_read_from_its_own_place(drawn: list[tuple[int, int, int, int, int]], side_by_side: bool) -> None:
    blocks: list[tuple[int, int, int]] = []
    pages = pb.PageTable()
    wanted: dict[int, tuple[int, int]] = {}
    page, ends = 16, {0: 1, 1: 1}
    for gap, count, pack, apart, skip in drawn:
        page += gap
        first = ends[pack] + (0 if side_by_side else apart)
        ends[pack] = first + skip + count
        pages.starts.append(page)
        pages.counts.append(count)
        pages.blocks.append(len(blocks))
        pages.skips.append(skip)
        blocks.append((pack, first, skip + count))
        for k in range(count):
            wanted[page + k] = (PACKS[pack], first + skip + k)
        page += count
    got: dict[int, tuple[int, int]] = {}
    for call in address_space.fill(pieces(pages), sources(blocks), SPARE):
        if call.nr == NR.pread64:
            fd, address, size, offset = numbers(*call.args)
            places = [(address, size)]
        else:
            assert call.nr == NR.preadv
            vector = call.args[1]
            assert isinstance(vector, bytes)
            fd, count, offset = numbers(call.args[0], *call.args[2:4])
            words = struct.unpack(f"<{len(vector) // 8}Q", vector)
            places = list(zip(words[::2], words[1::2], strict=True))
            assert len(places) == count <= address_space.IOV_MAX
        assert call.expect == sum(size for _, size in places) <= address_space.MAX_READ
        at = offset // PAGE
        for address, size in places:
            if address == SPARE:
                assert size <= address_space.GAP
                at += size // PAGE
                continue
            for k in range(size // PAGE):
                assert address // PAGE + k not in got
                got[address // PAGE + k] = (fd, at)
                at += 1
    assert got == wanted


@pytest.mark.parametrize(("count", "skip"), [(3, 0), (2, 1), (1, 2)])
def test_a_run_longer_than_its_block_is_damage(count: int, skip: int) -> None:
    pages = pb.PageTable(starts=[16], counts=[count], blocks=[0], skips=[skip])
    with pytest.raises(ImageDamaged):
        list(address_space.fill(pieces(pages), sources([(0, 1, 2)]), SPARE))


def space_of(*vmas: tuple[int, int]) -> pb.AddressSpace:
    space = pb.AddressSpace()
    for start, end in vmas:
        space.vmas.add(start=start, end=end, kind=pb.Vma.ANONYMOUS)
    return space


@pytest.mark.parametrize(
    "vmas",
    [[(0x2000, 0x4000), (0x3000, 0x5000)], [(0x4000, 0x2000)], [(0x1800, 0x3000)], [(0, 0x1000)], [(0x1000, 1 << 48)]],
)
def test_impossible_mappings_are_damage(vmas: list[tuple[int, int]]) -> None:
    with pytest.raises(ImageDamaged, match="not possible"):
        address_space.validate_form("process 100", space_of(*vmas))


@given(st.lists(st.tuples(st.integers(0, (1 << 35) - 1), st.integers(1, 1 << 20)), max_size=30))
def test_the_window_is_in_nobodys_way(drawn: list[tuple[int, int]]) -> None:
    spaces = [space_of((page * PAGE, (page + count) * PAGE)) for page, count in drawn]
    scratch = address_space.free_range(spaces, vdso.host(), 8 << 20)
    assert len(scratch) == 8 << 20
    for space in spaces:
        assert all(vma.end <= scratch.start or scratch.stop <= vma.start for vma in space.vmas)


@given(st.lists(st.integers(2, (1 << 35) - 4096), min_size=1, max_size=30, unique=True), st.integers(1, 4096))
def test_the_window_is_found_where_a_program_left_room(starts: list[int], pages: int) -> None:
    borders = [1, *sorted(starts), 1 << 35]
    wide = max(range(len(borders) - 1), key=lambda k: borders[k + 1] - borders[k])
    spaces = []  # processes that have mapped all but one gap, and each a part of that
    for start, end in (*pairwise(borders[: wide + 1]), *pairwise(borders[wide + 1 :])):
        spaces.append(space_of((start * PAGE, min(end * PAGE, TASK_SIZE))))
    room = (min(borders[wide + 1] * PAGE, TASK_SIZE - (64 << 30)) - max(borders[wide] * PAGE, 16 << 20)) // PAGE
    if room < pages:
        with pytest.raises(RestoreFailed, match="processes of the tree leave free"):
            address_space.free_range(spaces, vdso.host(), pages * PAGE)
        return
    scratch = address_space.free_range(spaces, vdso.host(), pages * PAGE)
    assert borders[wide] * PAGE <= scratch.start < scratch.stop <= borders[wide + 1] * PAGE


def test_the_first_system_v_segment_of_a_host_has_the_number_0() -> None:
    first = procfs.parse_mapping(b"7f0ac0713000-7f0ac0719000 rw-s 00000000 00:01 0      /SYSV54001db7 (deleted)")
    assert (
        vmas.unsupported("it", os.getpid(), [procfs.FlaggedMapping(first, (b"rd", b"wr", b"sh"), procfs.PAGE, 0)]) == []
    )
    assert is_memory(first)


@given(st.integers(1, 1 << 20), st.booleans(), st.booleans())
def test_committed_memory_is_mapped_in_pieces(pages: int, writable: bool, noreserve: bool) -> None:
    vma = pb.Vma(start=1 << 40, end=(1 << 40) + pages * PAGE, kind=pb.Vma.FILE_PRIVATE, offset=3 * PAGE)
    vma.prot, vma.noreserve = 1 | 2 * writable, noreserve
    image = pb.Tree(files=[pb.FileRef(path=b"/it")])
    calls = list(address_space._map(vma, image, sources([]), writable=False))
    at = vma.start
    for call in calls:
        start, size, _, _, _, offset = numbers(*call.args)
        assert start == at == call.expect
        assert offset == 3 * PAGE + at - vma.start
        at += size
        assert size <= address_space.AT_ONCE or noreserve or not writable
    assert at == vma.end
    if noreserve or not writable:
        assert len(calls) == 1


def test_a_host_that_promises_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/meminfo": b"MemTotal: 1 kB\nCommitLimit: 3072 kB\nCommitted_AS: 1024 kB\n"}
    monkeypatch.setattr(procfs, "read", lambda path: texts[path])
    image = pb.Tree(processes=[pb.Process(memory=space_of((1 << 20, 3 << 20)))])
    image.processes[0].memory.vmas[0].prot = 3
    for mode, size, reasons in ((b"0\n", 9 << 20, 0), (b"2\n", 2 << 20, 0), (b"2\n", 9 << 20, 1)):
        texts["/proc/sys/vm/overcommit_memory"] = mode
        image.processes[0].memory.vmas[0].end = (1 << 20) + size
        found = list(address_space.validate_commitment(image))
        assert len(found) == reasons
    assert "2 MiB; the tree has mapped 9 MiB" in str(found[0])


def test_limits_that_are_too_low_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dict.fromkeys((resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK), resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda number: (0, limits[number]))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    space = space_of((1 << 20, 9 << 20), (16 << 20, 17 << 20))
    space.vmas[0].prot = 3
    space.vmas[1].locked = True
    assert list(address_space.validate_limits("it", space)) == []
    for number, size, option in (
        (resource.RLIMIT_AS, 9 << 20, "-Hv"),
        (resource.RLIMIT_DATA, 8 << 20, "-Hd"),
        (resource.RLIMIT_MEMLOCK, 1 << 20, "-Hl"),
    ):
        limits[number] = size
        assert list(address_space.validate_limits("it", space)) == []
        limits[number] = size - 1
        (reason,) = address_space.validate_limits("it", space)
        assert option in reason.advice
        limits[number] = resource.RLIM_INFINITY
    monkeypatch.setattr(procfs, "read", lambda path: b"1\n")
    (reason,) = address_space.validate_limits("it", space)
    assert "2 mappings, and this host allows 1" in reason.why


def test_before_it_gets_mappings_a_process_has_no_arguments_at_the_old_place() -> None:
    """Who reads them (ps) would let a stack of the image grow down to there, where it comes to lie close above."""
    first, *rest = address_space.clear(range(1 << 44, (1 << 44) + 4 * PAGE), [])
    assert {call.nr for call in rest} == {NR.munmap}
    ask, answer = os.pipe(), os.pipe()

    def work() -> None:
        number, *arguments = first.args
        syscall(first.nr, number, *arguments)  # type: ignore[arg-type]
        os.write(answer[1], b"done")
        os.read(ask[0], 1)

    pid = forked(work)
    assert os.read(answer[0], 4) == b"done"
    fields = procfs.parse_stat(procfs.read(f"/proc/{pid}/stat")).fields
    assert [int(fields[number - 1]) for number in (48, 49, 50, 51)] == [1 << 44] * 4  # proc_pid_stat(5): arg_start...
    assert procfs.read(f"/proc/{pid}/cmdline") == procfs.read(f"/proc/{pid}/environ") == b""
    os.write(ask[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (*ask, *answer):
        os.close(fd)


@pytest.mark.parametrize("known", [True, False])
def test_memory_that_a_kernel_may_drop_is_made_on_one_that_cannot(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(address_space, "_has_droppable", lambda: known)
    vma = pb.Vma(start=0x10000, end=0x11000, kind=pb.Vma.ANONYMOUS, prot=3, noreserve=True, droppable=True)
    (call,) = address_space._map(vma, pb.Tree(), sources([]), writable=False)
    flags = call.args[3]
    assert isinstance(flags, int)
    assert flags & 0xF == (address_space.MAP_DROPPABLE if known else mmap.MAP_PRIVATE)
    assert flags & address_space.MAP_NORESERVE

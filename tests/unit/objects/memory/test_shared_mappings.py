"""Shared memory seen through a mapping: its pages, its content, and its end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from tests.unit.objects.process.inside import answers
from torpor import procfs
from torpor.errors import Refused
from torpor.objects.memory import shared_mappings
from torpor.objects.memory.address_space import MADV_GUARD_INSTALL
from torpor.objects.process import texts
from torpor.procfs import PAGE, Mapping
from torpor.remote.batch import Batch, Replies
from torpor.remote.sys import memfd_create
from torpor.util.ranges import Range

PAGES = 40


def asked(batch: Batch) -> Replies:
    """The answers to calls that are made here."""
    return answers(texts.grab(os.getpid()), batch).replies


@contextmanager
def shared(pages: int, offset: int = 0, *, size: int | None = None) -> Iterator[tuple[mmap.mmap, Mapping]]:
    """Shared memory, and the mapping of it in this process."""
    fd = memfd_create(b"torpor-test")
    os.ftruncate(fd, (offset + pages) * PAGE)
    memory = mmap.mmap(fd, pages * PAGE, offset=offset * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if size is not None:
        os.ftruncate(fd, size)
    os.close(fd)
    (mapping,) = (one for one in procfs.mappings(os.getpid()) if one.start == start)
    try:
        yield memory, mapping
    finally:
        memory.close()


def pages(found: Iterable[Range]) -> set[int]:
    return {at // PAGE for start, end in found for at in range(start, end, PAGE)}


@pytest.mark.parametrize("offset", [0, 3])
def test_pages_are_found_at_their_offset_in_the_memory(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Whatever the number of queries."""
    with shared(PAGES, offset) as (memory, mapping):
        for page in (0, 7, 8, 9, PAGES - 1):
            memory[page * PAGE] = 1
        wanted = {offset + page for page in (0, 7, 8, 9, PAGES - 1)}
        assert [pages(one) for one in shared_mappings.pages_there([mapping], asked)] == [wanted]
        monkeypatch.setattr(shared_mappings, "_ASKED_AT_ONCE", 8)
        assert [pages(one) for one in shared_mappings.pages_there([mapping], asked)] == [wanted]


@pytest.mark.parametrize(("pages_at_once", "queries"), [(32 << 10, 256), (32 << 10, 2), (5, 256), (7, 3)])
def test_many_mappings_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch, pages_at_once: int, queries: int) -> None:
    """A program may have mapped its memory in thousands of pieces: a call for each would keep it frozen for seconds."""
    monkeypatch.setattr(shared_mappings, "_ASKED_AT_ONCE", pages_at_once)
    monkeypatch.setattr(shared_mappings, "_MOST_QUERIES", queries)
    count = 0

    def ask(batch: Batch) -> Replies:
        nonlocal count
        count += 1
        return asked(batch)

    with shared(PAGES) as (memory, whole):
        for page in range(0, PAGES, 3):
            memory[page * PAGE] = 1
        sizes = [3] * (PAGES // 3) + [PAGES % 3] * (PAGES % 3 > 0)
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        parts = [
            whole._replace(
                start=whole.start + (end - size) * PAGE, end=whole.start + end * PAGE, offset=(end - size) * PAGE
            )
            for end, size in zip(ends, sizes, strict=True)
        ]
        found = shared_mappings.pages_there(parts, ask)
        assert [pages(one) for one in found] == [{end - size} for end, size in zip(ends, sizes, strict=True)]
        if (pages_at_once, queries) == (32 << 10, 256):
            assert count == 1
        else:
            assert 1 < count <= PAGES
    assert shared_mappings.pages_there([], ask) == []


def test_all_count_where_the_kernel_gives_no_answer() -> None:
    with shared(PAGES) as (memory, mapping):
        gone = mapping._replace(start=mapping.start + 1, end=mapping.start + 1 + PAGES * PAGE)  # EINVAL
        assert sum(end - start for start, end in shared_mappings.pages_there([gone], asked)[0]) == PAGES * PAGE
        assert memory[0] == 0


def test_ranges_are_read_one_behind_the_other() -> None:
    with shared(PAGES, 2) as (memory, mapping):
        memory[PAGE : PAGE + 4] = b"here"
        memory[5 * PAGE : 5 * PAGE + 5] = b"there"
        runs = [(3 * PAGE, 4 * PAGE), (7 * PAGE, 8 * PAGE)]
        content = bytearray(2 * PAGE)
        assert shared_mappings.read(os.getpid(), mapping, runs, memoryview(content))
        assert content[:4] == b"here" and content[PAGE : PAGE + 5] == b"there"


def test_behind_the_end_of_its_file_nothing_is_read_and_what_is_before_it_is() -> None:
    with shared(PAGES, size=5 * PAGE + 10) as (memory, mapping):
        memory[4 * PAGE : 4 * PAGE + 4] = b"last"
        runs = [(0, PAGE), (4 * PAGE, 9 * PAGE), (20 * PAGE, 21 * PAGE)]
        content = bytearray(7 * PAGE)
        assert not shared_mappings.read(os.getpid(), mapping, runs, memoryview(content))
        assert content[PAGE : PAGE + 4] == b"last"
        assert not any(content[3 * PAGE :])


def test_file_systems_in_memory_are_known() -> None:
    found = shared_mappings.tmpfs(os.getpid())
    fd = memfd_create(b"x")
    assert os.fstat(fd).st_dev in found
    os.close(fd)
    if any(mount.point == b"/dev/shm" and mount.filesystem == b"tmpfs" for mount in procfs.mounts(os.getpid())):
        assert os.stat("/dev/shm").st_dev in found
    assert os.stat("/proc").st_dev not in found


def test_swapping_is_what_meminfo_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, swapping in ((b"1000", False), (b"999", True)):
        text = b"MemTotal: 5 kB\nSwapCached: 0 kB\nSwapTotal: 1000 kB\nSwapFree: " + free + b" kB\nHugePages_Total: 0\n"
        monkeypatch.setattr(procfs, "read", lambda _, text=text: text)
        assert shared_mappings.is_swapping() == swapping


def test_a_guard_region_since_the_preflight_is_refused_by_name() -> None:
    """In a series the preflight does not look at mappings again: no page may be taken for a hole."""
    with shared(PAGES) as (memory, mapping):
        memory[0] = memory[PAGE * 9] = 1
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(mapping.start + 3 * PAGE), ctypes.c_size_t(2 * PAGE), MADV_GUARD_INSTALL):
            assert ctypes.get_errno() == errno.EINVAL
            pytest.skip("this kernel has no guard regions in shared memory (Linux 6.15)")
        content = bytearray(PAGES * PAGE)
        where = f"memory {mapping.start + 3 * PAGE:#x}-{mapping.start + 5 * PAGE:#x}: it is a guard region"
        with pytest.raises(Refused, match=where):
            shared_mappings.read(os.getpid(), mapping, [(0, PAGES * PAGE)], memoryview(content))

"""What a process has written since the last look, as the kernel notes it: nothing that was written is missed."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.leaks import no_more_descriptors
from torpor.arch.x86_64 import NR
from torpor.procfs import PAGE
from torpor.remote.memory import PageMap
from torpor.remote.sys import syscall
from torpor.remote.userfaultfd import OPEN_FLAGS
from torpor.remote.written import Private, WriteWatch
from torpor.util.ranges import Range

PAGES = 40


def made() -> WriteWatch:
    """A watch of this process."""
    try:
        return WriteWatch(syscall(NR.userfaultfd, OPEN_FLAGS))
    except OSError as error:
        pytest.skip(f"this kernel notes no writes (6.7): {error}")


class Memory:
    """Private memory of this process."""

    def __init__(self, pages: int = PAGES) -> None:
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_NOHUGEPAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.end = self.start + pages * PAGE
        self.range = (self.start, self.end)
        self.private = Private(self.start, self.end, False)

    def write(self, page: int) -> None:
        self.map[page * PAGE] = 1

    def pages(self, found: list[Range]) -> set[int]:
        return {(at - self.start) // PAGE for start, end in found for at in range(start, end, PAGE)}


@contextmanager
def watched(memory: Memory) -> Iterator[WriteWatch]:
    watch = made()
    try:
        assert watch.begin(os.getpid(), [memory.private])
        yield watch
    finally:
        watch.close()


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sets(st.integers(0, PAGES - 1)), st.booleans()), min_size=1, max_size=5))
def test_all_that_was_written_is_found_and_what_was_not_is_not(rounds: list[tuple[set[int], bool]]) -> None:
    memory = Memory()
    for page in range(PAGES):
        memory.write(page)
    with watched(memory) as watch:
        since: set[int] = set()
        for written, again in rounds:
            for page in written:
                memory.write(page)
            since |= written
            assert memory.pages(watch.look(os.getpid(), [memory.private], again=again)) == since
            if again:
                since = set()


@pytest.mark.parametrize("new", [None, 0, 2, 3])
def test_neighbours_are_looked_at_together_and_nothing_of_them_is_lost(
    monkeypatch: pytest.MonkeyPatch, new: int | None
) -> None:
    """Also where one of them is not watched yet: the kernel would forget what it found before it came to that one."""
    calls = 0
    real = PageMap.written

    def counted(self: PageMap, start: int, end: int, **how: bool) -> list[Range] | None:
        nonlocal calls
        calls += 1
        return real(self, start, end, **how)

    memory = Memory()
    for page in range(PAGES):
        memory.write(page)
    size = PAGES // 4 * PAGE
    parts = [Private(at, at + size, False) for at in range(memory.start, memory.end, size)]
    for part in parts[::2]:  # so that each is a mapping of its own
        memory.map.madvise(mmap.MADV_DONTDUMP, part.start - memory.start, size)
    watch = made()
    try:
        assert watch.begin(os.getpid(), [one for at, one in enumerate(parts) if at != new])
        written = {3, 13, 23, 33}
        for page in written:
            memory.write(page)
        found = memory.pages(watch.look(os.getpid(), parts, again=True))
        whole = set() if new is None else {*range(10 * new, 10 * new + 10)}
        assert found == written | whole
        monkeypatch.setattr(PageMap, "written", counted)
        assert memory.pages(watch.look(os.getpid(), parts, again=True)) == set()
        assert calls == 0, "nothing was written, so no page need be looked at"
        memory.write(13)
        assert memory.pages(watch.look(os.getpid(), parts, again=True)) == {13}
        assert calls == 1
    finally:
        watch.close()


@pytest.mark.parametrize("again", [True, False])
def test_a_large_mapping_is_looked_at_only_where_something_was_written(
    monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """There a page may be huge, so it is looked at for what is not protected before and after that is protected."""
    scanned: list[Range] = []
    real = PageMap.written

    def noted(self: PageMap, start: int, end: int, **how: bool) -> list[Range] | None:
        scanned.append((start, end))
        return real(self, start, end, **how)

    memory = Memory(4096)
    for page in range(4096):
        memory.write(page)
    with watched(memory) as watch:
        monkeypatch.setattr(PageMap, "written", noted)
        for written in ({0, 1, 300, 3000, 4095}, {2000}, set()):
            for page in written:
                memory.write(page)
            assert memory.pages(watch.look(os.getpid(), [memory.private], again=again)) == written
            assert memory.pages(scanned) <= ({*range(301), 2000, 3000, 4095} if again else set())
            scanned.clear()
            if not again:
                break


def test_pages_that_had_not_been_touched_count_when_they_are() -> None:
    memory = Memory()
    with watched(memory) as watch:
        assert watch.look(os.getpid(), [memory.private], again=True) == []
        memory.write(7)
        assert memory.pages(watch.look(os.getpid(), [memory.private], again=True)) == {7}
        assert watch.look(os.getpid(), [memory.private], again=True) == []


def test_what_the_kernel_writes_is_noted() -> None:
    memory = Memory()
    memory.write(3)
    memory.write(4)
    with watched(memory) as watch, open("/dev/urandom", "rb", buffering=0) as random:
        view = memoryview(memory.map)[3 * PAGE : 3 * PAGE + 10]
        random.readinto(view)
        view.release()
        assert memory.pages(watch.look(os.getpid(), [memory.private], again=True)) == {3}


def test_memory_that_was_given_back_and_taken_again_is_noted() -> None:
    memory = Memory()
    for page in range(PAGES):
        memory.write(page)
    with watched(memory) as watch:
        memory.map.madvise(mmap.MADV_DONTNEED, 5 * PAGE, 2 * PAGE)
        memory.write(5)
        assert 5 in memory.pages(watch.look(os.getpid(), [memory.private], again=True))
        assert memory.map[5 * PAGE + 1] == 0


def test_a_mapping_that_is_new_counts_as_written_until_it_is_watched() -> None:
    first, new = Memory(), Memory(4)
    for page in range(4):
        new.write(page)
    with watched(first) as watch:
        both = sorted([first.private, new.private])
        assert watch.look(os.getpid(), both, again=False) == [new.range]
        assert watch.look(os.getpid(), both, again=True) == [new.range]
        assert watch.look(os.getpid(), both, again=True) == []
        new.write(2)
        assert new.pages(watch.look(os.getpid(), both, again=True)) == {2}


def test_memory_that_another_one_watches_is_left_to_them() -> None:
    memory = Memory()
    memory.write(1)
    with watched(memory) as first:
        second = made()
        assert not second.begin(os.getpid(), [memory.private])
        second.close()
        memory.write(1)
        assert memory.pages(first.look(os.getpid(), [memory.private], again=True)) == {1}
    third = made()
    assert third.begin(os.getpid(), [memory.private]), "nobody watches it any more"
    third.close()


def test_a_closed_watch_leaves_nothing() -> None:
    memory = Memory()
    with no_more_descriptors():
        watch = made()
        watch.begin(os.getpid(), [memory.private])
        watch.close()
        watch.close()
        memory.write(0)


def test_what_is_no_userfaultfd_is_refused_and_closed() -> None:
    with no_more_descriptors(), pytest.raises(OSError):
        WriteWatch(os.open("/dev/null", os.O_RDONLY))
    with no_more_descriptors():
        assert WriteWatch.made(os.open("/dev/null", os.O_RDONLY)) is None


def test_a_process_that_is_gone_is_said_to_be() -> None:
    memory = Memory()
    with watched(memory) as watch, pytest.raises((ProcessLookupError, FileNotFoundError)):
        watch.look(0x7FFFFFF, [memory.private], again=True)

"""A process's own pages: which they are, and that what is stored is what it has."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.errors import CheckpointFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory import own_pages
from torpor.objects.memory.incremental import BLOCK_PAGES, Columns, Cut
from torpor.objects.memory.own_pages import PageWriter, Ranges
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.store import Store
from torpor.util.ranges import Range

HOLDER = """
import ctypes, mmap, sys, tempfile
pages = int(sys.argv[1])
file = tempfile.TemporaryFile()
file.write(b"file" * 1024 * pages); file.flush()
private = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
backed = mmap.mmap(file.fileno(), pages * 4096, flags=mmap.MAP_PRIVATE)
def at(memory): return ctypes.addressof(ctypes.c_char.from_buffer(memory))
for number in map(int, sys.argv[2:]):
    private[number * 4096 : number * 4096 + 4] = b"mine"
    backed[number * 4096 : number * 4096 + 4096] = bytes(4096)
print(at(private), at(backed), flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(pages: int, *written: int) -> Iterator[tuple[int, int, int]]:
    """A process with memory of `pages` pages of which it has `written` some, and with as many of a file, some of which
    it has overwritten with zeros: its PID and the two addresses."""
    command = [sys.executable, "-c", HOLDER, str(pages), *map(str, written)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        private, backed = map(int, process.stdout.readline().split())
        yield process.pid, private, backed
    finally:
        process.communicate()


def saved(store: Store, own: Ranges, progress: list[tuple[int, int]] | None = None) -> dict[int, bytes]:
    """The pages that are stored of a process, by their addresses, as they come back."""
    seen = [] if progress is None else progress
    table, found = pb.PageTable(), own.find()
    with store.writer("tree") as saver:
        with PageWriter(saver, lambda done, expected: seen.append((done, expected))) as out:
            out.expect(sum(end - start for start, end in found))
            out.store_private(own, Cut(Columns.empty(), found), None, table)
        saver.publish(b"", "")
    assert list(table.starts) == sorted(table.starts)
    with store.open("latest") as reader:
        pages: dict[int, bytes] = {}
        for start, count, block in zip(table.starts, table.counts, table.blocks, strict=True):
            content = reader.read_block(block)
            assert len(content) == count * PAGE
            pages.update({(start + n) * PAGE: content[n * PAGE : (n + 1) * PAGE] for n in range(count)})
        return pages


def test_what_was_written_is_stored_and_nothing_else(store: Store) -> None:
    written = (0, 3, BLOCK_PAGES - 1, BLOCK_PAGES, 2 * BLOCK_PAGES + 1)
    with holder(3 * BLOCK_PAGES, *written) as (pid, private, _):
        pages = saved(store, Ranges(pid, [(private, private + 3 * BLOCK_PAGES * PAGE)], []))
    assert pages == {private + n * PAGE: b"mine".ljust(PAGE, b"\0") for n in written}


def test_a_page_of_a_file_that_was_overwritten_with_zeros_is_stored(store: Store) -> None:
    with holder(8, 2, 5) as (pid, private, backed):
        mappings = sorted([(private, private + 8 * PAGE), (backed, backed + 8 * PAGE)])
        pages = saved(store, Ranges(pid, mappings, [], backed=[(backed, backed + 8 * PAGE)]))
    of_the_file = {at: content for at, content in pages.items() if backed <= at < backed + 8 * PAGE}
    assert of_the_file == {backed + n * PAGE: bytes(PAGE) for n in (2, 5)}
    assert len(pages) == 4


def test_of_a_file_that_is_gone_every_page_is_stored(store: Store) -> None:
    with holder(8, 2) as (pid, _, backed):
        mapping = (backed, backed + 8 * PAGE)
        pages = saved(store, Ranges(pid, [mapping], [mapping], backed=[mapping]))
    assert pages == {backed + n * PAGE: bytes(PAGE) if n == 2 else b"file" * 1024 for n in range(8)}


def test_much_memory_is_stored_in_order_and_all_of_it_is_counted(store: Store) -> None:
    size = 3 * own_pages._CHUNK + 5 * PAGE
    progress: list[tuple[int, int]] = []
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mine:
        for at in range(0, size, PAGE):
            mine[at : at + 8] = at.to_bytes(8, "little")
        mine[0] = 1
        start = address_of(mine)
        pages = saved(store, Ranges(os.getpid(), [(start, start + size)], []), progress)
        assert {at - start: int.from_bytes(content[:8], "little") for at, content in pages.items()} == {
            at: at or 1 for at in range(0, size, PAGE)
        }
    done = [done for done, _ in progress]
    assert done == sorted(done) and progress[-1] == (size, size)


def test_memory_that_only_the_tracer_may_read_is_read_by_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer, read, refused = threading.get_ident(), memory.read_quietly, []

    def forced(pid: int, pieces: Sequence[Range], buffer: memoryview) -> None:
        """As a kernel with CONFIG_PROC_MEM_FORCE_PTRACE reads memory without PROT_READ."""
        if threading.get_ident() != tracer:
            refused.append(pieces)
            raise OSError(errno.EIO, "Input/output error")
        read(pid, pieces, buffer)

    with holder(2000, 0, 1500) as (pid, private, _):
        own = Ranges(pid, [(private, private + 2000 * PAGE)], [])
        expected = saved(store, own)
        monkeypatch.setattr(memory, "read_quietly", forced)
        assert saved(store, own) == expected
    assert refused and expected.keys() == {private, private + 1500 * PAGE}


def address_of(mine: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mine))


def test_memory_that_cannot_be_read_is_named(store: Store) -> None:
    with holder(2, 0) as (pid, private, _):
        beyond = (1 << 47) - 4 * PAGE
        own = Ranges(pid, [(private, private + PAGE)], [])
        with (
            store.writer("tree") as saver,
            pytest.raises(CheckpointFailed, match=f"memory of process {pid} between {beyond:#x} and"),
            PageWriter(saver, lambda done, expected: None) as out,
        ):
            out.store_private(own, Cut(Columns.empty(), [(beyond, beyond + PAGE)]), None, pb.PageTable())
    with (
        store.writer("tree") as saver,
        pytest.raises(ProcessLookupError),
        PageWriter(saver, lambda done, expected: None) as out,
    ):
        out.store_private(own, Cut(Columns.empty(), own.private), None, pb.PageTable())


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 4000)), max_size=30), st.booleans())
def test_chunks_cover_all_once_and_blocks_are_not_cut(drawn: list[tuple[int, int]], many: bool) -> None:
    ranges: list[Range] = []
    at = 0
    for gap, pages in drawn * (100 if many else 1):
        ranges.append(((at + gap) * PAGE, (at + gap + (1 if many else pages)) * PAGE))
        at += gap + pages
    chunks = list(own_pages._chunks(ranges))
    assert [piece for chunk in chunks for piece in chunk if piece[1] <= 0] == []
    assert all(sum(size for _, size in chunk) <= own_pages._CHUNK for chunk in chunks)
    assert all(len(chunk) <= memory.IOV_MAX for chunk in chunks)
    joined: list[Range] = []
    for start, size in (piece for chunk in chunks for piece in chunk):
        if joined and joined[-1][1] == start and (start // PAGE) % BLOCK_PAGES == 0 and not is_begin(start, ranges):
            joined[-1] = (joined[-1][0], start + size)
        else:
            joined.append((start, start + size))
    assert joined == ranges


def is_begin(start: int, ranges: list[Range]) -> bool:
    return any(first == start for first, _ in ranges)


def test_a_file_is_stored_up_to_the_size_that_it_had(store: Store) -> None:
    """Holes stay holes, and what was appended since is left out."""
    table = pb.PageTable()
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), b"data", 64 * PAGE)
        size = os.fstat(file.fileno()).st_size
        os.pwrite(file.fileno(), b"more" * PAGE, size)
        with store.writer("tree") as saver:
            with PageWriter(saver, lambda done, expected: None) as out:
                out.store_file(file.fileno(), size, table)
            saver.publish(b"", "")
    assert (list(table.starts), list(table.counts)) == ([64], [1])
    with store.open("latest") as reader:
        assert reader.read_block(table.blocks[0])[:4] == b"data"

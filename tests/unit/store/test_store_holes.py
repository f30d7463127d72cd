"""Blocks that no snapshot names give their space back, and no others do."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.leaks import no_more_descriptors
from torpor.errors import StoreError
from torpor.store import SnapshotInfo, Store, files, holes, known, shrink, writer
from torpor.store.blocks import BlockTable
from torpor.store.holes import Extents
from torpor.store.manifest import Manifest, read_manifest

BLOCK = 65536


def contents(*numbers: int) -> list[bytes]:
    """Blocks of different lengths, whose bytes are never zero."""
    return [bytes([number + 1]) * (BLOCK - 5000 * (number % 3)) for number in numbers]


def save(store: Store, *numbers: int, kind: str = "tree") -> SnapshotInfo:
    """Write a snapshot of such blocks; its body is their numbers."""
    with store.writer(kind) as saver:
        parts = contents(*numbers)
        assert saver.add_blocks(memoryview(b"".join(parts)), list(map(len, parts))) == list(range(len(set(numbers))))
        return saver.publish(bytes(numbers), "a test")


def check(store: Store) -> None:
    """Every snapshot is whole."""
    assert store.verify() == []
    for info in store.snapshots():
        with store.open(info) as reader:
            assert [reader.read_block(row) for row in range(len(reader.blocks))] == contents(*reader.body)


def pack_of(store: Store, info: SnapshotInfo) -> Path:
    return Path(store.path, "packs", f"{info.id}.pack")


def disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def pages_held(store: Store) -> dict[str, set[int]]:
    """The pages of each pack that are no holes."""
    found = {}
    for path in Path(store.path, "packs").iterdir():
        with open(path, "rb") as file:
            parts = holes.data(file.fileno(), 0, path.stat().st_size)
            found[path.stem] = {page for start, end in parts for page in range(start // 4096, -(-end // 4096))}
    return found


def pages_named(store: Store) -> dict[str, set[int]]:
    """The pages of each pack that snapshots name, and its header."""
    named: dict[str, set[int]] = {}
    for info in store.snapshots():
        with store.open(info) as reader:
            for row in range(len(reader.blocks)):
                pack, at, length = reader.block(row)
                pages = range(at // 4096, -(-(at + length) // 4096))
                named.setdefault(info.packs[pack], {0}).update(pages)
    return named


def mixed(store: Store) -> tuple[SnapshotInfo, SnapshotInfo]:
    """Two snapshots: the second needs two of the ten blocks that the first wrote, and one of its own."""
    return save(store, *range(10)), save(store, 2, 7, 20)


def test_a_removal_frees_what_nobody_else_needs(store: Store) -> None:
    first, second = mixed(store)
    pack = pack_of(store, first)
    size, before = pack.stat().st_size, store.used()
    assert before == disk(pack) + disk(pack_of(store, second)) >= size
    report = store.remove(first.id)
    assert report.shrunk == (first.id,) and report.packs == () and report.kept == ""
    assert pack.stat().st_size == size, "its size, which manifests name, is as it was"
    assert before - store.used() >= 7 * BLOCK
    assert report.freed >= before - store.used()
    assert pages_held(store) == pages_named(store)
    check(store)
    assert store.remove(second.id).packs == (first.id, second.id)


def test_a_prune_says_what_it_frees_and_frees_it(store: Store) -> None:
    mixed(store)
    before = store.used()
    dry = store.prune(1, dry_run=True)
    assert store.used() == before and len(store.snapshots()) == 2
    wet = store.prune(1)
    assert len(wet.shrunk) == 1 and wet == replace(dry, dry_run=False)
    assert store.used() < before
    check(store)
    again = store.prune(1)
    assert again.shrunk == () and again.freed == 0, "it is free already"


def test_a_removal_looks_only_at_packs_that_the_snapshot_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(store)
    first, _ = save(store, 40, 41, kind="other"), save(store, 41, 42, kind="other")
    read = []

    def noted(fd: int, size: int, snapshot: str, place: str) -> Manifest:
        read.append(snapshot)
        return read_manifest(fd, size, snapshot, place)

    monkeypatch.setattr(shrink, "read_manifest", noted)
    report = store.remove(first.id)
    assert report.shrunk == (first.id,)
    assert read == [store.ids()[-1]], "other tables were not read"


def test_what_stayed_because_the_store_was_in_use_goes_later(store: Store) -> None:
    first, _ = mixed(store)
    third = save(store, 50)
    other = Store(store.path)
    with store.open(third):
        report = store.remove(first.id)
        assert report.in_use and "busy" in report.kept and report.shrunk == ()
    assert store.remove(third.id).shrunk == (first.id,), "by the next removal of the same Store"
    assert pages_held(store) == pages_named(store)
    fourth, fifth = save(store, *range(60, 70)), save(store, 61, 71)
    with other.open(fifth):
        assert other.remove(fourth.id).in_use
    assert Store(store.path).prune(10).shrunk == (fourth.id,), "or by any prune"
    assert pages_held(store) == pages_named(store)
    check(store)


def test_blocks_that_were_freed_are_not_taken_over(store: Store) -> None:
    """The snapshot before was removed between two of a series; its pack is there still, for another snapshot."""
    with store.writer("tree") as saver:
        rows = saver.add_blocks(memoryview(b"".join(contents(0, 3, 6))), [BLOCK] * 3)
        first = saver.publish(b"", "a test")
        before = saver.known()
    save(store, 3)
    with store.writer("tree", known=before) as saver:
        assert saver.base is before and saver.adopt(rows) == [0, 1, 2]
    store.remove(first.id)
    assert pack_of(store, first).exists()
    with store.writer("tree", known=before) as saver:
        assert saver.base is None, "its blocks are holes"
        parts = contents(0, 3, 6)
        saver.add_blocks(memoryview(b"".join(parts)), list(map(len, parts)))
        saver.publish(bytes((0, 3, 6)), "a test")
    check(store)


def test_a_snapshot_that_is_removed_while_it_is_a_base_keeps_its_blocks(store: Store) -> None:
    with store.writer("tree") as saver:
        rows = saver.add_blocks(memoryview(b"".join(contents(0, 3))), [BLOCK] * 2)
        first = saver.publish(b"", "a test")
        before = saver.known()
    save(store, 3)
    with store.writer("tree", known=before) as saver:
        assert store.remove(first.id).in_use
        saver.adopt(rows)
        saver.publish(bytes((0, 3)), "a test")
    assert store.prune(10).shrunk == ()
    check(store)


def test_what_is_published_between_the_looks_keeps_its_blocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saver took over blocks of a snapshot that was removed before the first look, and publishes after it."""
    first = save(store, *range(10))
    with store.writer("tree") as saver:
        parts = contents(2, 7)
        rows = saver.add_blocks(memoryview(b"".join(parts)), list(map(len, parts)))
        second = saver.publish(bytes((2, 7)), "a test")
        before = saver.known()
    save(store, 7)
    savers: list[writer.SnapshotWriter] = []

    def hooked(path: str, *, exclusive: bool = False, patience: float = 0) -> files.Place:
        if exclusive:
            savers[0].publish(bytes((2, 7)), "a test")
        else:
            savers.append(store.writer("tree", known=before))
            savers[0].adopt(rows)
            assert Store(path).remove(second.id).in_use
        return files.Place(path, exclusive=exclusive, patience=patience)

    monkeypatch.setattr(shrink, "Place", hooked)
    assert store.remove(first.id).shrunk == (first.id,)
    assert len(store.ids()) == 2 and pages_held(store) == pages_named(store)
    check(store)


def test_a_reader_between_the_looks_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = mixed(store)
    readers = []

    def hooked(path: str, *, exclusive: bool = False, patience: float = 0) -> files.Place:
        if exclusive:
            readers.append(store.open(second))
        return files.Place(path, exclusive=exclusive, patience=patience)

    monkeypatch.setattr(shrink, "Place", hooked)
    report = store.remove(first.id)
    assert report.in_use and "busy" in report.kept and report.shrunk == ()
    readers[0].close()
    monkeypatch.undo()
    assert store.remove(save(store, 50).id).shrunk == (first.id,)
    check(store)


@pytest.mark.parametrize("where", ["head", "table", "end"])
def test_a_manifest_that_cannot_be_read_keeps_all_blocks(store: Store, where: str) -> None:
    first, second = mixed(store)
    third = save(store, 1, 9)
    manifest = Path(store.path, "snapshots", second.id, "manifest")
    raw = bytearray(manifest.read_bytes())
    raw[{"head": 40, "table": -100, "end": -1}[where]] ^= 1
    manifest.write_bytes(raw)
    before = store.used()
    for report in (store.remove(first.id), store.prune(10)):
        assert report.shrunk == () and second.id in report.kept
    assert store.used() == before
    store.remove(second.id)
    assert store.prune(10).kept == "" and pages_held(store) == pages_named(store)
    assert [info.id for info in store.snapshots()] == [third.id]
    check(store)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_holes(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    first, second = mixed(store)
    asked = []

    def refuse(fd: int, start: int, end: int) -> None:
        asked.append((start, end))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shrink, "punch", refuse)
    for report in (store.prune(1, dry_run=True), store.remove(first.id), store.prune(1)):
        assert report.shrunk == () and os.strerror(code) in report.kept and first.id in report.kept
    assert len(asked) == 3, "it is asked once each time"
    assert asked[0][0] == pack_of(store, first).stat().st_size, "a dry run asks where nothing is"
    check(store)
    assert store.remove(second.id).packs == (first.id, second.id)


def test_a_pack_that_was_exchanged_gets_no_holes(store: Store) -> None:
    first, _ = mixed(store)
    pack = pack_of(store, first)
    content = b"x" * pack.stat().st_size
    pack.write_bytes(content)
    assert store.remove(first.id).shrunk == ()
    assert pack.read_bytes() == content


def test_a_pack_that_was_exchanged_does_not_keep_what_others_hold(store: Store) -> None:
    first, _ = mixed(store)
    third = save(store, *range(30, 40))
    save(store, 32)
    pack = pack_of(store, first)
    pack.write_bytes(b"x" * pack.stat().st_size)
    with no_more_descriptors():
        assert store.discard([first, third]).shrunk == (third.id,)


def test_a_file_with_holes_is_told_from_one_without(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (4 * BLOCK))
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        full = holes.disk_bytes(os.fstat(file.fileno()))
        holes.punch(file.fileno(), BLOCK, 2 * BLOCK)
        os.fsync(file.fileno())
        assert full - holes.disk_bytes(os.fstat(file.fileno())) == BLOCK
        assert list(holes.data(file.fileno(), 0, 9 * BLOCK)) == [(0, BLOCK), (2 * BLOCK, 4 * BLOCK)]
        assert list(holes.data(file.fileno(), BLOCK, 2 * BLOCK)) == []
        assert os.pread(file.fileno(), 2 * BLOCK, 0) == b"x" * BLOCK + bytes(BLOCK)
    with open(path, "rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        holes.punch(file.fileno(), 0, BLOCK)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9))), st.integers(0, 5))
def test_gaps_are_what_no_range_covers(ranges: list[tuple[int, int]], patience: int) -> None:
    extents = Extents()
    extents._patience = patience
    covered = set()
    for start, size in ranges:
        extents.add(start, start + size)
        covered |= set(range(start, start + size))
    gaps = list(extents.gaps(1, 80))
    assert {at for start, end in gaps for at in range(start, end)} == set(range(1, 80)) - covered
    assert all(end < start for (_, end), (start, _) in pairwise(gaps)), "as few as can be"


def test_ranges_take_no_more_memory_than_their_union() -> None:
    extents = Extents()
    for _ in range(50):
        for start in range(0, 4000, 2):
            extents.add(start, start + 1)
            assert len(extents._starts) <= 4002
    assert len(list(extents.gaps(0, 4000))) == 2000


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 9000)), max_size=12))
def test_runs_cover_the_blocks_of_a_table(rows: list[tuple[int, int, int]]) -> None:
    table = BlockTable()
    pages = set()
    for pack, page, length in rows:
        table.packs.append(pack)
        table.offsets.append(page * 4096)
        table.lengths.append(length)
        pages |= {(pack, page + k) for k in range(-(-length // 4096))}
    runs = list(table.runs())
    assert {(pack, at // 4096) for pack, start, end in runs for at in range(start, end, 4096)} == pages
    assert len(runs) <= len(rows)


numbers = st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True)
steps = st.one_of(
    st.tuples(st.just("save"), numbers),
    st.tuples(st.just("series"), numbers),
    st.tuples(st.just("remove"), st.integers(0, 9)),
    st.tuples(st.just("remove while in use"), st.integers(0, 9)),
    st.tuples(st.just("prune"), st.integers(1, 6)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=2, max_size=14))
def test_any_snapshots_and_any_removals(tmp_path_factory: pytest.TempPathFactory, acts: list[tuple]) -> None:  # type: ignore[type-arg]
    """Every snapshot that is left is whole, and nothing is held but what they name."""
    store = Store(tmp_path_factory.mktemp("store"))
    save(store, *range(5))
    before: known.KnownBlocks | None = None
    had: list[int] = []
    for act, what in acts:
        ids = store.ids()
        if act == "save":
            save(store, *what)
        elif act == "series":
            with store.writer("tree", known=before) as saver:
                kept = had[1:] if saver.base else []
                if saver.base:
                    saver.adopt(range(1, len(had)))
                new = [number for number in what if number not in kept]
                parts = contents(*new)
                saver.add_blocks(memoryview(b"".join(parts)), list(map(len, parts)))
                had = [*kept, *new]
                saver.publish(bytes(had), "a test")
                before = saver.known()
        elif act == "remove" and ids:
            store.remove(ids[what % len(ids)])
        elif act == "remove while in use" and ids:
            with store.open(ids[-1]):
                Store(store.path).remove(ids[what % len(ids)])
        elif act == "prune":
            store.prune(what)
        check(store)
    store.prune(1000)
    assert pages_held(store) == pages_named(store)
    check(store)


def test_a_lock_that_cannot_be_had_alone_frees_nothing(store: Store) -> None:
    first, second = mixed(store)
    before = store.used()
    with store.open(second), pytest.raises(StoreError, match="busy"):
        store.prune(1)
    assert store.used() == before and [info.id for info in store.snapshots()] == [first.id, second.id]


def test_the_size_of_a_store_that_is_not_there(store: Store) -> None:
    assert store.used() == 0

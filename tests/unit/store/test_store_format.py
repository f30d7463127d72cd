"""What was cut, changed, exchanged or made up in a store is refused with the reason, and never believed."""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.errors import ImageDamaged, StoreError, TorporError
from torpor.store import BlockTable, SnapshotInfo, Store
from torpor.store.manifest import FIXED, MAGIC, VERSION, encode, printable
from torpor.store.store_pb2 import Envelope, PackRef

CONTENTS = [b"one" * 2000, b"two" * 100, os.urandom(8192)]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Store, SnapshotInfo]:
    store = Store(tmp_path / "store")
    with store.writer("tree", {"node": "n1"}) as saver:
        saver.add_blocks(memoryview(b"".join(CONTENTS)), [len(content) for content in CONTENTS])
        return store, saver.publish(b"the body", "a test")


def manifest_of(info: SnapshotInfo) -> Path:
    return Path(info.store, "snapshots", info.id, "manifest")


def pack_of(info: SnapshotInfo) -> Path:
    return Path(info.store, "packs", f"{info.id}.pack")


def is_refused(store: Store, info: SnapshotInfo) -> None:
    with pytest.raises(ImageDamaged) as caught, store.open(info.id):
        pass
    assert info.id in caught.value.message and caught.value.advice
    assert [problem.subject for problem in store.verify()] == [f"snapshot {info.id}"]


def packs_are_refused(store: Store, info: SnapshotInfo) -> None:
    with store.open(info.id) as reader:
        with pytest.raises(ImageDamaged, match=info.id):
            reader.pack_fd(0)
        with pytest.raises(ImageDamaged, match=info.id):
            reader.verify_blocks([0])
    assert [problem.subject for problem in store.verify()] == [f"snapshot {info.id}"]


def test_a_manifest_cut_at_every_byte(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    manifest = manifest_of(info)
    for size in reversed(range(manifest.stat().st_size)):
        os.truncate(manifest, size)
        is_refused(store, info)
        (listed,) = store.snapshots()
        assert listed.id == info.id and listed.damage


def test_a_bit_flipped_in_every_byte_of_a_manifest(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    manifest = manifest_of(info)
    good = manifest.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        manifest.write_bytes(bad)
        is_refused(store, info)
    manifest.write_bytes(good)
    assert store.verify() == []


def test_junk_after_a_manifest(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with open(manifest_of(info), "ab") as file:
        file.write(b"\0")
    is_refused(store, info)
    assert store.snapshots()[0].damage


def test_a_manifest_of_another_snapshot(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with store.writer("tree") as saver:
        other = saver.publish(b"", "")
    shutil.copyfile(manifest_of(other), manifest_of(info))
    is_refused(store, info)
    assert store.snapshots()[0].damage == "it was written under another id"


def test_a_newer_format_is_refused_by_name(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    data = bytearray(manifest_of(info).read_bytes())
    data[8:12] = struct.pack("<I", VERSION + 1)
    manifest_of(info).write_bytes(data)
    with pytest.raises(ImageDamaged, match=r"format version 2.*the version of Torpor that wrote it"):
        store.open(info.id)


@pytest.mark.parametrize(
    "fixed",
    [
        FIXED.pack(MAGIC, VERSION, 0xFFFFFFFF, 0, 0),
        FIXED.pack(MAGIC, VERSION, 8, 2**64 - 1, 0),
        FIXED.pack(MAGIC, VERSION, 8, 2**60, 2**60),
        FIXED.pack(MAGIC, VERSION, 8, 0, 2**64 - 32),
    ],
)
def test_lengths_beyond_bounds_take_no_memory(saved: tuple[Store, SnapshotInfo], fixed: bytes) -> None:
    store, info = saved
    manifest_of(info).write_bytes(fixed + bytes(100))
    is_refused(store, info)
    assert "beyond what the format allows" in store.snapshots()[0].damage


def forge(info: SnapshotInfo, head: Envelope, table: BlockTable, body: bytes = b"") -> None:
    """Put a manifest in place whose checksums are right."""
    manifest_of(info).write_bytes(b"".join(encode(head, table, body)))


def table_of(*rows: tuple[int, int, int]) -> BlockTable:
    packs, offsets, lengths = zip(*rows, strict=True)
    return BlockTable(array("Q", offsets), array("I", lengths), array("I", packs), bytearray(32 * len(rows)))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((1, 4096, 1), "pack number 1, and 1 are named"),
        ((2**32 - 1, 4096, 1), "pack number"),
        ((0, 0, 1), "page boundary behind the pack's header"),
        ((0, 4097, 1), "page boundary"),
        ((0, 4096, 0), "length"),
        ((0, 4096, 2**32 - 1), "length"),
        ((0, 4096, 4097), "beyond the end"),
        ((0, 8192, 1), "beyond the end"),
        ((0, 2**64 - 4096, 4096), "beyond the end"),
        ((0, 2**63, 4096), "beyond the end"),
    ],
)
def test_a_block_outside_its_pack(saved: tuple[Store, SnapshotInfo], row: tuple[int, int, int], why: str) -> None:
    store, info = saved
    head = Envelope(id=info.id, kind="tree", packs=[PackRef(id=info.id, size=8192)])
    forge(info, head, table_of((0, 4096, 4096), row))
    is_refused(store, info)
    assert why in store.verify()[0].why


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2) | st.integers(0, 2**32 - 1),
            st.sampled_from([0, 4096, 8192, 1 << 40, 2**64 - 4096]) | st.integers(0, 2**64 - 1),
            st.integers(0, 8192) | st.integers(0, 2**32 - 1),
        ),
        min_size=1,
        max_size=4,
    ),
    sizes=st.lists(st.integers(1, 8).map(lambda pages: pages * 4096), max_size=3),
)
def test_every_block_of_an_accepted_table_lies_in_its_pack(rows: list[tuple[int, int, int]], sizes: list[int]) -> None:
    table = table_of(*rows)
    if not table.fault(sizes):
        assert all(
            4096 <= offset < offset + length <= sizes[pack] and not offset % 4096 for pack, offset, length in rows
        )


@pytest.mark.parametrize(
    "head",
    [
        Envelope(kind="../tree"),
        Envelope(kind=""),
        Envelope(kind="tree", created_ns=-1),
        Envelope(kind="tree", tags={"a/b": "c"}),
        Envelope(kind="tree", tags={"a": "\x1b]0;title\x07"}),
        Envelope(kind="tree", tags={f"t{number}": "" for number in range(65)}),
        Envelope(kind="tree", summary="two\nlines"),
        Envelope(kind="tree", notices=["two\nlines"]),
        Envelope(kind="tree", notices=["one"] * 65),
        Envelope(kind="tree", summary="x" * 1025),
        Envelope(kind="tree", host="\x9b2J"),
        Envelope(kind="tree", needs=["\r"]),
        Envelope(kind="tree", packs=[PackRef(id="../../etc/passwd", size=8192)]),
        Envelope(kind="tree", packs=[PackRef(id="20260101-000000000-aaaaaa\n", size=8192)]),
        Envelope(kind="tree", packs=[PackRef(id="20260101-000000000-aaaaaa", size=2**64 - 4096)]),
        Envelope(kind="tree", packs=[PackRef(id="20260101-000000000-aaaaaa", size=4097)]),
        Envelope(kind="tree", packs=[PackRef(id="20260101-000000000-aaaaaa", size=8192)] * 2),
    ],
)
def test_a_head_that_no_writer_makes(saved: tuple[Store, SnapshotInfo], head: Envelope) -> None:
    store, info = saved
    head.id = info.id
    forge(info, head, BlockTable())
    is_refused(store, info)
    (listed,) = store.snapshots()
    assert listed.damage.isprintable() and listed.kind == ""
    assert store.prune(0).packs == (), "it may have named any pack"


def test_a_head_of_a_newer_version(saved: tuple[Store, SnapshotInfo]) -> None:
    """What it says besides may be more packs that are needed."""
    store, info = saved
    head = Envelope(id=info.id, kind="tree")
    head.MergeFromString(b"\xf8\x3f\x01")
    forge(info, head, BlockTable())
    with pytest.raises(ImageDamaged, match=r"does not know: field 1023 of Envelope.*or a newer one"):
        store.open(info)
    assert "does not know" in store.snapshots()[0].damage
    report = store.prune(0)
    assert report.packs == () and info.id in report.kept


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=64))
def test_any_head_and_body_with_right_checksums(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes
) -> None:
    """Whatever the bytes are, only a refusal in our words comes out."""
    store = Store(tmp_path_factory.mktemp("store"))
    with store.writer("tree") as saver:
        info = saver.publish(b"", "")
    start = FIXED.pack(MAGIC, VERSION, len(head), 0, len(rest)) + head
    start += blake3(start).digest() + rest
    manifest_of(info).write_bytes(start + blake3(start).digest())
    store.snapshots()
    with pytest.raises(ImageDamaged):
        store.open(info.id)


def test_a_snapshot_too_large_for_the_format_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    too_large = pytest.raises(StoreError, match=r"larger than the format allows: its head has 1\.0 MiB")
    with store.writer("tree") as saver, too_large:
        saver.publish(b"", "", needs=["x" * (1 << 20)])
    assert os.listdir(tmp_path / "store" / "snapshots") == []


@given(st.text())
def test_printable(text: str) -> None:
    assert printable(text).isprintable() and len(printable(text)) == min(len(text), 1024)


def test_a_bit_flipped_in_a_pack(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    pack = pack_of(info)
    good = pack.read_bytes()
    for place in [*range(0, 4096, 61), *range(64)]:
        pack.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        packs_are_refused(store, info)
    with store.open(info.id) as reader:
        spans = [reader.block(index)[1:] for index in range(3)]
    for index, (offset, length) in enumerate(spans):
        for place in (offset, offset + length // 2, offset + length - 1):
            pack.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with store.open(info.id) as reader:
                with pytest.raises(ImageDamaged, match=f"block {index} .* not what was written"):
                    reader.read_block(index)
                with pytest.raises(ImageDamaged):
                    reader.verify_blocks([0, 1, 2])
                reader.verify_blocks({0, 1, 2} - {index})
            (problem,) = store.verify()
            assert f"block {index} " in problem.why


def test_every_snapshot_that_shares_a_bad_block_is_named(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(CONTENTS[2]), [len(CONTENTS[2])])
        second = saver.publish(b"", "")
    with store.open(second.id) as reader:
        offset = reader.block(0)[1]
    pack = bytearray(pack_of(info).read_bytes())
    pack[offset] ^= 1
    pack_of(info).write_bytes(pack)
    assert {problem.subject for problem in store.verify()} == {f"snapshot {info.id}", f"snapshot {second.id}"}


def test_a_pack_cut_grown_missing_or_exchanged(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with store.writer("other") as saver:
        saver.add_blocks(memoryview(b"".join(CONTENTS)), [len(content) for content in CONTENTS])
        other = saver.publish(b"", "")
    good, swapped = pack_of(info).read_bytes(), pack_of(other).read_bytes()
    store.remove(other.id)
    for bad in (good[:-1], good[:4096], b"", good + bytes(4096), swapped):
        pack_of(info).write_bytes(bad)
        packs_are_refused(store, info)
    pack_of(info).unlink()
    packs_are_refused(store, info)


def test_a_pack_that_is_cut_while_it_is_read(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with store.open(info.id) as reader:
        reader.pack_fd(0)
        os.truncate(pack_of(info), 5000)
        with pytest.raises(ImageDamaged, match="became shorter"):
            reader.verify_blocks(range(3))


def test_a_block_number_out_of_range(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    with store.open(info.id) as reader:
        for index in (-1, 3, 2**32):
            with pytest.raises(ImageDamaged, match=f"no block {index}"):
                reader.read_block(index)
            with pytest.raises(ImageDamaged, match=f"no block {index}"):
                reader.verify_blocks([0, index, 1])
        reader.verify_blocks([])


def plant_link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def plant_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def plant_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.parametrize("plant", [plant_link, plant_fifo, plant_directory])
def test_no_link_pipe_or_directory_is_read_in_place_of_a_file(saved: tuple[Store, SnapshotInfo], plant: object) -> None:
    assert callable(plant)
    store, info = saved
    kept = pack_of(info).read_bytes()
    plant(pack_of(info))
    with store.open(info.id) as reader, pytest.raises(ImageDamaged, match="not a regular file"):
        reader.pack_fd(0)
    if pack_of(info).is_dir() and not pack_of(info).is_symlink():
        pack_of(info).rmdir()
    else:
        pack_of(info).unlink()
    pack_of(info).write_bytes(kept)
    pack_of(info).chmod(0o600)
    plant(manifest_of(info))
    is_refused(store, info)


def test_no_link_is_followed_to_a_snapshot_or_folder(saved: tuple[Store, SnapshotInfo], tmp_path: Path) -> None:
    store, info = saved
    folder = manifest_of(info).parent
    outside = tmp_path / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    is_refused(store, info)
    assert store.remove(info.id).snapshots[0].damage
    assert (outside / "manifest").exists(), "only the link was removed"
    for name in ("packs", "snapshots", "locks"):
        path = Path(store.path, name)
        plant_link(path)
        with pytest.raises(TorporError) as caught:
            store.writer("tree")
        assert isinstance(caught.value, StoreError)
        path.unlink()
        path.with_name("moved").rename(path)
    assert store.snapshots() == []


def test_what_is_no_snapshot_is_let_be(saved: tuple[Store, SnapshotInfo]) -> None:
    store, info = saved
    for name in (".nfs0000000001", "notes.txt", "20260101-000000000-AAAAAA"):
        Path(store.path, "snapshots", name).mkdir()
        Path(store.path, "packs", name).touch()
    assert store.snapshots() == [info]
    report = store.prune(0)
    assert report.leftovers == ()
    assert Path(store.path, "packs", "notes.txt").exists()

"""One snapshot in one file: out of a store, and into another."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.errors import ImageDamaged, NotFound, Refused, StoreError, TorporError
from torpor.store import SnapshotInfo, Store, transfer

PAGE = 4096
BLOCKS = [b"a" * PAGE, b"b" * 100, b"c" * (3 * PAGE + 1)]


def save(store: Store, blocks: list[bytes], body: bytes = b"body", **tags: str) -> SnapshotInfo:
    with store.writer("tree", tags) as writer:
        for block in blocks:
            writer.add_blocks(memoryview(block), [len(block)])
        return writer.publish(body, "a job", needs=["a-need"], notices=["a connection is lost"])


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def contents(store: Store, snapshot: str) -> list[bytes]:
    with store.open(snapshot, knows=["a-need"]) as reader:
        return [reader.read_block(row) for row in range(len(reader.blocks))]


def left(store: Store) -> list[str]:
    """All files of a store but its locks."""
    root = Path(store.path)
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"
    )


def test_there_and_back(store: Store, other: Store, tmp_path: Path) -> None:
    info = save(store, BLOCKS, project="tides")
    file = tmp_path / "file"
    assert store.export_file(info.short, file) == info
    assert file.stat().st_mode & 0o777 == 0o600
    came = other.import_file(file)
    for name in ("id", "kind", "created_ns", "host", "tags", "needs", "summary", "notices", "size"):
        assert getattr(came, name) == getattr(info, name), name
    assert contents(other, came.id) == BLOCKS
    assert other.verify() == []
    with other.open(came, knows=["a-need"]) as reader:
        assert reader.body == b"body"
    again = tmp_path / "again"
    other.export_file(came, again)
    assert again.read_bytes() == file.read_bytes(), "whichever store it comes from"


def test_without_blocks(store: Store, other: Store, tmp_path: Path) -> None:
    info = save(store, [])
    store.export_file(info, tmp_path / "file")
    assert other.import_file(tmp_path / "file").id == info.id
    assert contents(other, info.id) == []


def test_blocks_of_several_packs_become_one(store: Store, other: Store, tmp_path: Path) -> None:
    save(store, BLOCKS[:1])
    info = save(store, BLOCKS)
    assert len(info.packs) == 2
    store.export_file(info, tmp_path / "file")
    other.import_file(tmp_path / "file")
    assert contents(other, info.id) == contents(store, info.id)


def test_what_the_other_store_has_is_not_stored_again(store: Store, other: Store, tmp_path: Path) -> None:
    save(other, BLOCKS)
    info = save(store, [*BLOCKS, b"d" * PAGE])
    store.export_file(info, tmp_path / "file")
    before = other.used()
    came = other.import_file(tmp_path / "file")
    assert len(came.packs) == 2
    assert other.used() - before == 2 * PAGE, "a header and a block"
    assert contents(other, info.id) == [*BLOCKS, b"d" * PAGE]


def test_a_snapshot_that_was_removed_comes_back_beside_its_old_pack(store: Store, tmp_path: Path) -> None:
    """Another snapshot needs that pack, in which there are holes now."""
    first = save(store, BLOCKS)
    store.export_file(first, tmp_path / "file")
    second = save(store, BLOCKS[1:2])
    store.remove(first.id)
    store.prune(9)
    assert first.id in second.packs
    assert store.import_file(tmp_path / "file").id == first.id
    assert contents(store, first.id) == BLOCKS
    store.remove(second.id)
    store.prune(9)
    assert store.verify() == []
    assert contents(store, first.id) == BLOCKS
    store.remove(first.id)
    store.prune(0)
    assert left(store) == []


def test_the_same_one_twice(store: Store, other: Store, tmp_path: Path) -> None:
    info = save(store, BLOCKS)
    store.export_file(info, tmp_path / "file")
    for place in (store, other, other):
        if place is other and not other.ids():
            other.import_file(tmp_path / "file")
        before = left(place)
        with pytest.raises(Refused, match="has it already"):
            place.import_file(tmp_path / "file")
        assert left(place) == before
        assert contents(place, info.id) == BLOCKS


def test_no_file_is_overwritten(store: Store, tmp_path: Path) -> None:
    info = save(store, BLOCKS)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(Refused, match="it exists"):
            store.export_file(info, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StoreError, match=r"nowhere/file cannot be written: No such file"):
        store.export_file(info, tmp_path / "nowhere/file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "store"]


def test_an_export_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    info = save(store, BLOCKS)
    pack = next(Path(store.path).rglob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[-PAGE] ^= 1
    pack.write_bytes(data)
    with pytest.raises(ImageDamaged, match="is not what was written"):
        store.export_file(info, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_is_no_file(other: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        other.import_file(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("a text")
    for name, words in (("fifo", "not a regular file"), ("text", "it ends after 6 bytes"), (".", "not a regular")):
        with pytest.raises(ImageDamaged, match=words):
            other.import_file(tmp_path / name)


def exported(store: Store, path: Path, blocks: list[bytes] = BLOCKS) -> bytearray:
    store.export_file(save(store, blocks), path)
    return bytearray(path.read_bytes())


def manifest_of(data: bytearray) -> tuple[int, int]:
    length = struct.unpack_from("<Q", data, 64)[0]
    return transfer.HEADER.size, transfer.HEADER.size + length


def sealed(data: bytearray) -> None:
    """Compute the manifest's hashes anew, as an attacker would."""
    begin, end = manifest_of(data)
    head = struct.unpack_from("<I", data, begin + 12)[0]
    inner = begin + 32 + head
    data[inner : inner + 32] = blake3(data[begin:inner]).digest()
    data[end - 32 : end] = blake3(data[begin : end - 32]).digest()


def table_at(data: bytearray) -> int:
    begin, _ = manifest_of(data)
    return begin + 32 + int(struct.unpack_from("<I", data, begin + 12)[0]) + 32


def at_one_place(data: bytearray) -> None:
    struct.pack_into("<Q", data, table_at(data) + 8, PAGE)
    sealed(data)


def beyond_the_end(data: bytearray) -> None:
    struct.pack_into("<Q", data, table_at(data) + 16, 1 << 40)
    sealed(data)


def another_hash(data: bytearray) -> None:
    data[table_at(data) + 16 * len(BLOCKS)] ^= 1
    sealed(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.__setitem__(0, 0), "it does not begin as one"),
        (lambda data: struct.pack_into("<I", data, 8, 2), "has format version 2"),
        (lambda data: struct.pack_into("<I", data, 12, 1), "format version"),
        (lambda data: data.__setitem__(slice(16, 19), b"../"), "its id is none"),
        (lambda data: data.__setitem__(16, ord("9")), "it was written under another id"),
        (lambda data: struct.pack_into("<Q", data, 64, 1 << 60), "and says that it has"),
        (lambda data: struct.pack_into("<Q", data, 72, 1 << 60), "and says that it has"),
        (lambda data: data.extend(b"x"), "and says that it has"),
        (lambda data: data.__delitem__(slice(-1, None)), "and says that it has"),
        (lambda data: data.__setitem__(-PAGE - 5, 7), "block 2 is not what was written"),
        (lambda data: data.__setitem__(-6 * PAGE - 1, 7), "its pack does not begin"),
        (at_one_place, "its blocks are not one behind the other"),
        (beyond_the_end, "a block reaches beyond the end of its pack"),
        (another_hash, "block 0 is not what was written"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    store: Store, other: Store, tmp_path: Path, change: Callable[[bytearray], object], words: str
) -> None:
    data = exported(store, tmp_path / "file")
    change(data)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ImageDamaged, match=words):
        other.import_file(tmp_path / "file")
    assert left(other) == []
    assert other.ids() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed(store: Store, other: Store, tmp_path: Path, data: st.DataObject) -> None:
    """But those of the gaps, which nobody reads."""
    file = tmp_path / "file"
    good = bytes(file.read_bytes() if file.exists() else exported(store, file))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "bad").write_bytes(bad[: data.draw(st.sampled_from([len(bad), at]))])
    try:
        info = other.import_file(tmp_path / "bad")
    except TorporError:
        assert other.ids() == []
        assert left(other) == []
        return
    assert contents(other, info.id) == BLOCKS
    other.remove(info.id)


def test_an_import_that_is_interrupted_leaves_nothing(store: Store, other: Store, tmp_path: Path) -> None:
    exported(store, tmp_path / "file")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other.import_file(tmp_path / "file", interrupt)
    assert (left(other), other.ids()) == ([], [])


def test_two_imports_at_once(store: Store, other: Store, tmp_path: Path) -> None:
    """The first to make the directory imports it; the other one takes nothing of it away."""
    exported(store, tmp_path / "file")
    refused: list[Refused] = []

    def again(done: int, total: int) -> None:
        with pytest.raises(Refused) as told:
            other.import_file(tmp_path / "file")
        refused.append(told.value)

    info = other.import_file(tmp_path / "file", again)
    assert len(refused) == len(BLOCKS)
    assert contents(other, info.id) == BLOCKS


def test_indexes_stay_where_two_blocks_are_equal(store: Store, other: Store, tmp_path: Path) -> None:
    """An image names blocks by their indexes; a series can have one block twice."""
    info = save(store, BLOCKS)
    with store.open(info, knows=["a-need"]) as reader:
        reader.blocks.extend(reader.blocks, 0, 1, {0: 0})
        transfer.export(reader, str(tmp_path / "file"), None)
    other.import_file(tmp_path / "file")
    assert contents(other, info.id) == [*BLOCKS, BLOCKS[0]]
    assert other.used() == 7 * PAGE

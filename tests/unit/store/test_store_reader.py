"""Reading a snapshot: what its blocks are, and what somebody did to its packs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.store.store_content import BLOCK, flip, random_blocks, save
from torpor.errors import ImageDamaged, TorporError
from torpor.store import SnapshotInfo, Store
from torpor.store import reader as reading

PAGE = 4096


def pack_of(store: Store, snapshot: SnapshotInfo) -> Path:
    return Path(store.path) / "packs" / f"{snapshot.packs[0]}.pack"


def test_blocks_are_what_was_written_whatever_their_size(store: Store) -> None:
    contents = [b"x", b"y" * PAGE, *random_blocks(1, reading.READ_SIZE + 5), *random_blocks(3, 100)]
    save(store, *contents)
    with no_more_descriptors(), store.open("latest") as reader:
        assert [reader.read_block(index) for index in reader.body] == contents
        assert list(reader.bad_blocks([*reader.body, *reversed(reader.body)])) == []
        assert list(reader.bad_blocks([])) == []
        reader.verify_blocks(reader.body)


def test_a_part_of_a_block_is_no_more_than_the_block(store: Store) -> None:
    save(store, b"0123456789", b"the next")
    with store.open("latest") as reader:
        first = reader.body[0]
        assert reader.peek(first, 0, 4) == b"0123"
        assert reader.peek(first, 7, 3) == b"789"
        for skip, size in ((0, 11), (7, 4), (11, 1), (1 << 40, 1)):
            with pytest.raises(ImageDamaged, match="it names more of block 0 than there is"):
                reader.peek(first, skip, size)


@pytest.mark.parametrize("index", [-1, 2, 1 << 31, 1 << 64])
def test_a_block_that_is_not_there(store: Store, index: int) -> None:
    save(store, *random_blocks(2))
    with store.open("latest") as reader:
        for act in (
            lambda: reader.block(index),
            lambda: reader.read_block(index),
            lambda: reader.peek(index, 0, 1),
            lambda: list(reader.bad_blocks([0, index])),
        ):
            with pytest.raises(ImageDamaged, match=f"it has no block {index}"):
                act()


def test_a_byte_that_changed_is_found_in_its_block_and_in_no_other(store: Store) -> None:
    snapshot = save(store, *random_blocks(40))
    with store.open("latest") as reader:
        wanted = reader.body[17]
        _, offset, length = reader.block(wanted)
        flip(pack_of(store, snapshot), offset + length - 1)
        assert list(reader.bad_blocks(reader.body)) == [wanted]
        with pytest.raises(ImageDamaged, match=f"{snapshot.id} is damaged: block {wanted} .* is not what was written"):
            reader.read_block(wanted)
        with pytest.raises(ImageDamaged, match=f"block {wanted} "):
            reader.verify_blocks(reader.body)
        reader.verify_blocks(set(reader.body) - {wanted})
        assert len(reader.peek(wanted, 0, BLOCK)) == BLOCK, "a look is no check"


def shorten(pack: Path) -> None:
    os.truncate(pack, pack.stat().st_size - 1)


def lengthen(pack: Path) -> None:
    os.truncate(pack, pack.stat().st_size + 1)


def replace(pack: Path) -> None:
    flip(pack, 10)


def link(pack: Path) -> None:
    pack.rename(pack.with_suffix(".away"))
    pack.symlink_to(pack.with_suffix(".away"))


def fifo(pack: Path) -> None:
    pack.unlink()
    os.mkfifo(pack, 0o600)


def directory(pack: Path) -> None:
    pack.unlink()
    pack.mkdir()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (shorten, "bytes and should have"),
        (lengthen, "bytes and should have"),
        (replace, "does not begin as that pack"),
        (link, "is not a regular file"),
        (fifo, "is not a regular file|bytes and should have"),
        (directory, "is not a regular file"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_pack_that_somebody_changed_is_told_by_name(store: Store, act: Callable[[Path], None], words: str) -> None:
    snapshot = save(store, *random_blocks(2))
    pack = pack_of(store, snapshot)
    pack.chmod(0o600)
    act(pack)
    with no_more_descriptors(), store.open("latest") as reader:
        for _ in range(2):
            with pytest.raises(TorporError, match=words) as told:
                reader.read_block(0)
            assert snapshot.packs[0] in str(told.value)


def test_a_pack_that_becomes_shorter_while_it_is_read(store: Store) -> None:
    snapshot = save(store, *random_blocks(3))
    pack = pack_of(store, snapshot)
    with store.open("latest") as reader:
        reader.read_block(2)
        pack.chmod(0o600)
        os.truncate(pack, BLOCK)
        with pytest.raises(ImageDamaged, match="became shorter while it was read"):
            reader.read_block(2)
        with pytest.raises(ImageDamaged, match="became shorter while it was read"):
            list(reader.bad_blocks(reader.body))


def test_several_threads_may_read_at_once(store: Store) -> None:
    contents = random_blocks(30)
    save(store, *contents)
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(index for index in reader.body if reader.read_block(index) != contents[index])

    with no_more_descriptors(), store.open("latest") as reader:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []

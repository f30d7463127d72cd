"""A snapshot in the making, when not all of it could be written, or is being written still."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.store.store_content import files_of, load, save
from torpor.errors import Refused, StoreError
from torpor.store import Store, blocks, files, known, writer
from torpor.store.manifest import MAX_TAGS, MAX_TEXT

BLOCK = b"x" * 5000


def test_what_could_not_be_written_is_not_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(b"y"), [1])
        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_all", full)
            with pytest.raises(StoreError, match="No space left"):
                saver.add_blocks(memoryview(BLOCK), [len(BLOCK)])
        with pytest.raises(StoreError, match="No space left"):
            saver.publish(b"", "")
    assert store.snapshots() == []
    assert files_of(store) == ["locks/spare"]


@pytest.mark.parametrize("how", ["publish", "abandon"])
def test_a_write_that_is_under_way_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        if threading.current_thread() is adding:
            begun.set()
            assert go_on.wait(60)
        files.write_all(*arguments)

    saver = store.writer("tree")
    adding = threading.Thread(target=lambda: saver.add_blocks(memoryview(BLOCK), [len(BLOCK)]))

    def end() -> None:
        getattr(saver, how)(*((b"\0", "") if how == "publish" else ()))
        done.set()

    ending = threading.Thread(target=end)
    monkeypatch.setattr(writer, "write_all", slow)
    adding.start()
    assert begun.wait(60)
    ending.start()
    assert not done.wait(0.05)
    go_on.set()
    adding.join()
    ending.join()
    assert done.is_set()
    assert ([load(store)] if how == "publish" else store.snapshots()) == ([[BLOCK]] if how == "publish" else [])


def test_a_block_whose_length_is_not_what_is_known_is_stored_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier snapshot's table is believed in its hashes; what else it says must fit."""
    save(store, BLOCK)
    real = known.KnownBlocks.find

    def longer(self: known.KnownBlocks, *arguments: Any) -> tuple[known.Pack, int, int] | None:
        found = real(self, *arguments)
        return found and (*found[:2], found[2] + 1)

    monkeypatch.setattr(known.KnownBlocks, "find", longer)
    info = save(store, BLOCK)
    assert info.packs == (info.id,)
    assert load(store) == [BLOCK]


def test_what_stands_under_the_name_of_a_new_file_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / "link").symlink_to(other)
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in ("other", "link"):
            with pytest.raises(FileExistsError):
                files.create_file(name, folder)
    finally:
        os.close(folder)
    assert other.read_text() == "theirs"


def test_a_write_that_writes_nothing_is_a_fault_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="wrote nothing"):
        files.write_all(file.fileno(), [memoryview(BLOCK)], 0)


def test_the_next_snapshot_comes_last_although_the_clock_has_gone_back(store: Store) -> None:
    first = save(store, BLOCK)
    os.rename(Path(store.path, "snapshots", first.id), Path(store.path, "snapshots", "29990101-000000000-aaaaaa"))
    with store.writer("tree") as saver:
        assert saver.id > "29990101-000000000-aaaaaa"


def test_what_a_snapshot_may_say_of_itself_has_limits(store: Store) -> None:
    most = {f"tag-{number}": "x" * MAX_TEXT for number in range(MAX_TAGS)}
    assert save(store, BLOCK, **most).tags == most
    for tags in ({**most, "one-more": ""}, {"long": "x" * (MAX_TEXT + 1)}, {"odd": "\x1b"}):
        with pytest.raises((ValueError, Refused)):
            save(store, BLOCK, **tags)


def test_the_largest_block_is_taken(store: Store) -> None:
    save(store, bytes(blocks.MAX_BLOCK))
    assert load(store) == [bytes(blocks.MAX_BLOCK)]


def test_an_adopted_block_is_not_written_a_second_time(store: Store) -> None:
    with store.writer("tree") as saver:
        (first,) = saver.add_blocks(memoryview(BLOCK), [len(BLOCK)])
        saver.publish(b"", "a test")
        before = saver.known()
    with store.writer("tree", known=before) as saver:
        adopted = saver.adopt([first])
        assert saver.adopt([first]) == adopted == saver.add_blocks(memoryview(BLOCK), [len(BLOCK)])
        saver.publish(bytes(adopted), "a test")
    assert len(os.listdir(Path(store.path, "packs"))) == 1
    assert load(store) == [BLOCK]


@pytest.mark.parametrize("how", ["publish", "abandon"])
def test_a_writer_leaves_nothing_open(store: Store, how: str) -> None:
    save(store, BLOCK)  # the store is made
    with no_more_descriptors(), store.writer("tree") as saver:
        saver.add_blocks(memoryview(BLOCK + b"y"), [len(BLOCK), 1])
        if how == "publish":
            saver.publish(b"", "a test", prove=lambda reader: reader.verify_blocks(b"\0"))

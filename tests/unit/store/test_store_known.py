"""Blocks that are known beforehand are used as long as they are there, and from few packs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from tests.unit.store.store_content import save
from torpor.store import Store, known
from torpor.store.files import Place
from torpor.store.known import KnownBlocks


def of(store: Store, text: str = "latest") -> KnownBlocks:
    with store.open(text) as reader:
        return KnownBlocks.of(reader)


@pytest.fixture
def place(store: Store) -> Iterator[Place]:
    """Of a store of two snapshots, of which the second needs the first one's pack."""
    save(store, b"one")
    save(store, b"one", b"two")
    with closing(Place(store.path)) as opened:
        yield opened


def test_a_snapshot_is_there_while_all_its_packs_are(store: Store, place: Place) -> None:
    """Also when one goes after the first look."""
    blocks = of(store)
    assert [pack for pack, _ in blocks.packs] == [info.id for info in store.snapshots()]
    assert blocks.is_there(place)
    pack = Path(store.path, "packs", f"{blocks.packs[0][0]}.pack")
    kept = pack.read_bytes()
    for content in (kept[:-4096], bytes(len(kept))):
        pack.write_bytes(content)
        assert not blocks.is_there(place)
        assert blocks.find(blake3(b"one").digest(), 1, place) is None
        pack.write_bytes(kept)
        assert blocks.is_there(place)
    pack.unlink()
    assert not blocks.is_there(place)
    assert blocks.find(blake3(b"two").digest(), 1, place) is not None


def test_a_snapshot_that_was_removed_is_not_there(store: Store, place: Place) -> None:
    blocks = of(store)
    Path(store.path, "snapshots", store.snapshots()[-1].id, "manifest").unlink()
    assert not blocks.is_there(place)


def test_of_many_packs_those_are_used_that_have_most(
    store: Store, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, b"one", b"two", b"three", b"four")
    blocks = of(store)
    assert len(blocks.packs) == 3
    monkeypatch.setattr(KnownBlocks, "MOST_PACKS", 3)
    assert blocks.retire() == set()
    monkeypatch.setattr(KnownBlocks, "MOST_PACKS", 1)
    retired = blocks.retire()
    assert [blocks.packs[number][0] for number in sorted(retired)] == [info.id for info in store.snapshots()[:2]]
    found = {word: blocks.find(blake3(word).digest(), 1, place) for word in (b"one", b"two", b"three", b"four")}
    assert [word for word, where in found.items() if where] == [b"three", b"four"]


@pytest.mark.parametrize(("most", "count"), [(2, 0), (3, 3), (5, 3), (6, 6)])
def test_of_many_snapshots_the_newest_are_known(
    store: Store, monkeypatch: pytest.MonkeyPatch, most: int, count: int
) -> None:
    """Up to so many blocks, of which none is known in part."""
    save(store, b"a", b"b", b"c")
    save(store, b"d", b"e", b"f")
    monkeypatch.setattr(known, "MAX_KNOWN_BLOCKS", most)
    with closing(Place(store.path)) as opened:
        newest = KnownBlocks.newest(opened, "tree")
        assert (newest.find(blake3(b"d").digest(), 1, opened) is None) == (count == 0)
        assert (newest.find(blake3(b"a").digest(), 1, opened) is None) == (count < 6)
        assert len(newest.table) == count
        of_others = KnownBlocks.newest(opened, "other")
        assert of_others.find(blake3(b"d").digest(), 1, opened) is None
        assert not len(of_others.table)
    monkeypatch.setattr(known, "MAX_KNOWN_BLOCKS", 1 << 20)
    monkeypatch.setattr(known, "MAX_KNOWN_SNAPSHOTS", 1)
    with closing(Place(store.path)) as opened:
        newest = KnownBlocks.newest(opened, "tree")
        assert newest.find(blake3(b"a").digest(), 1, opened) is None
        assert len(newest.table) == 3


def test_no_more_manifests_are_read_than_what_is_missing_is_worth(store: Store) -> None:
    """Each of ten snapshots has a block of its own; a save that finds nothing looks at few of them."""
    for number in range(10):
        save(store, b"%d" % number)
    with closing(Place(store.path)) as opened:
        newest = KnownBlocks.newest(opened, "tree")
        assert not len(newest.table)
        assert newest.find(blake3(b"9").digest(), 1, opened)
        assert len(newest.table) == 1
        assert newest.find(blake3(b"new").digest(), 1, opened) is None
        assert len(newest.table) == known.ALWAYS_READ
        assert newest.find(blake3(b"larger").digest(), 2 * known.WORTH, opened) is None
        assert len(newest.table) == known.ALWAYS_READ + 2
        assert newest.find(blake3(b"huge").digest(), 1 << 24, opened) is None
        assert len(newest.table) == 10
        assert newest.find(blake3(b"0").digest(), 1, opened)

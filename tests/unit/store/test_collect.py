"""What no snapshot needs is removed; what may be needed stays."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.store.store_content import random_blocks, save
from torpor.store import PruneReport, SnapshotInfo, Store, collect
from torpor.store.files import Place


@pytest.fixture
def infos(store: Store) -> list[SnapshotInfo]:
    """Two snapshots that have a pack each."""
    return [save(store, *random_blocks(1)) for _ in range(2)]


@contextmanager
def locked(store: Store) -> Iterator[Place]:
    """The store as prune has it: nobody else may use it."""
    place = Place(store.path, exclusive=True)
    try:
        yield place
    finally:
        place.close()


def collected(store: Store, going: Collection[SnapshotInfo] = (), *, dry_run: bool = False) -> PruneReport:
    with locked(store) as place:
        return collect.collect(place, going, dry_run=dry_run)[0]


def packs(store: Store) -> set[str]:
    return {path.stem for path in Path(store.path, "packs").glob("*.pack")}


def test_a_dry_run_says_what_a_real_one_frees(store: Store, infos: list[SnapshotInfo]) -> None:
    dry = collected(store, infos[:1], dry_run=True)
    assert (len(packs(store)), len(store.ids())) == (2, 2)
    wet = collected(store, infos[:1])
    assert (dry.packs, dry.snapshots) == (wet.packs, wet.snapshots) == ((infos[0].id,), (infos[0],))
    assert 0 < dry.freed <= wet.freed
    assert packs(store) == {infos[1].id}


def test_a_manifest_that_cannot_be_read_keeps_every_pack(store: Store, infos: list[SnapshotInfo]) -> None:
    manifest = Path(store.path, "snapshots", infos[0].id, "manifest")
    manifest.chmod(0o600)
    manifest.write_bytes(b"")
    with locked(store) as place:
        report, shrinkable = collect.collect(place, infos[1:], dry_run=False)
    assert infos[0].id in report.kept
    assert (report.packs, shrinkable, packs(store)) == ((), set(), {info.id for info in infos})


def test_names_that_are_no_packs_are_left_alone(store: Store, infos: list[SnapshotInfo]) -> None:
    names = {"notes", "x.pack", "x.tmp", ".nfs0001"}
    for name in names:
        Path(store.path, "packs", name).touch()
    report = collected(store)
    assert (report.packs, report.leftovers) == ((), ())
    assert names < set(os.listdir(Path(store.path, "packs")))


def test_a_directory_without_a_manifest_is_what_a_dead_writer_left(store: Store, infos: list[SnapshotInfo]) -> None:
    folder = Path(store.path, "snapshots", infos[0].id)
    (folder / "manifest").rename(folder / "manifest.tmp")
    report = collected(store)
    assert (report.leftovers, report.packs) == ((f"snapshots/{infos[0].id}",), (infos[0].id,))
    assert not folder.exists()


def test_a_link_in_the_place_of_a_snapshot_is_removed_and_not_followed(
    store: Store, infos: list[SnapshotInfo], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = Path(store.path, "snapshots", infos[0].id)
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    with locked(store) as place:
        assert collect.unlink_snapshot(place, infos[0].id) == 0
    assert (elsewhere / "manifest").exists() and not os.path.lexists(folder)


def test_what_others_put_into_a_snapshot_stays(store: Store, infos: list[SnapshotInfo]) -> None:
    """NFS keeps a file that is open under another name. Without its manifest the directory is no snapshot."""
    left = Path(store.path, "snapshots", infos[0].id, ".nfs0001")
    left.touch()
    with locked(store) as place:
        assert collect.unlink_snapshot(place, infos[0].id) > 0
    assert left.exists() and [info.id for info in store.snapshots()] == [infos[1].id]

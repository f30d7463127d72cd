"""What is removed is gone and frees its packs, what is pinned stays, and what is busy says so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.store.store_content import BLOCK, files_of, load, random_blocks, save
from torpor.errors import NotFound, Refused, StoreError
from torpor.store import Store, files


def test_what_prune_took_is_not_taken_over(store: Store) -> None:
    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(random_blocks(1)[0]), [BLOCK])
        first = saver.publish(b"", "a test")
        before = saver.known()
    store.remove(first.id)
    with store.writer("tree", known=before) as saver:
        assert saver.base is None


def test_removing_any_snapshot_leaves_the_others_whole(store: Store) -> None:
    one, two, three = random_blocks(3)
    first, second, third = save(store, one, two), save(store, two, three), save(store, three, one)
    report = store.remove(first.short)
    assert report.snapshots == (first,) and report.packs == () and report.kept == ""
    assert store.snapshots() == [second, third]
    assert store.verify() == []
    assert load(store, third.id) == [three, one]
    report = store.remove(third.id)
    assert report.packs == ()  # the first pack has block two, which the second snapshot needs
    report = store.remove(second.id)
    assert set(report.packs) == {first.id, second.id}
    assert files_of(store) == ["locks/spare"]


def test_prune_says_what_it_will_do_and_does_it(store: Store) -> None:
    infos = [save(store, *random_blocks(1)) for _ in range(4)]
    before = files_of(store)
    size = sum(Path(store.path, name).stat().st_blocks * 512 for name in before)
    dry = store.prune(1, dry_run=True)
    assert files_of(store) == before
    assert dry.snapshots == tuple(infos[:3]) and dry.packs == tuple(info.id for info in infos[:3])
    wet = store.prune(1)
    assert (wet.snapshots, wet.packs, wet.freed) == (dry.snapshots, dry.packs, dry.freed)
    assert size - sum(Path(store.path, name).stat().st_blocks * 512 for name in files_of(store)) == wet.freed
    assert store.snapshots() == infos[3:] and store.verify() == []
    with pytest.raises(ValueError):
        store.prune(-1)


def test_prune_counts_only_what_was_asked_for(store: Store) -> None:
    mine = [save(store, b"m%d" % number, job="1") for number in range(3)]
    other = save(store, b"o", job="2")
    result = save(store, b"r", kind="dask", job="1")
    assert store.prune(1, kind="tree", tags={"job": "1"}).snapshots == tuple(mine[:2])
    assert store.snapshots() == [mine[2], other, result]


def test_what_is_pinned_stays(store: Store) -> None:
    first, second, third = (save(store, *random_blocks(1)) for _ in range(3))
    store.pin(first.id)
    store.pin(first.id)
    assert store.prune(1).snapshots == (second,), "a pinned one does not count"
    assert store.snapshots() == [first, third]
    store.pin(first.id, False)
    store.pin(first.id, False)
    assert store.prune(1).snapshots == (first,)
    store.pin(third.id)
    with pytest.raises(Refused, match=r"pinned.*--force"):
        store.remove(third.id)
    assert store.snapshots() == [third]
    store.remove(third.id, force=True)
    assert files_of(store) == ["locks/spare"]
    for id in (first.id, "..", ""):
        with pytest.raises(NotFound):
            store.pin(id)


def test_an_unreadable_manifest_keeps_every_pack(store: Store) -> None:
    infos = [save(store, *random_blocks(1)) for _ in range(3)]
    manifest = Path(store.path, "snapshots", infos[0].id, "manifest")
    manifest.write_bytes(b"nonsense")
    report = store.prune(0)
    assert report.snapshots == tuple(infos[1:]) and report.packs == ()
    assert infos[0].id in report.kept
    assert len(os.listdir(os.path.join(store.path, "packs"))) == 3
    assert store.remove(infos[0].id).packs == tuple(info.id for info in infos)
    assert files_of(store) == ["locks/spare"]


def test_blocks_that_an_unreadable_manifest_may_need_are_not_freed(store: Store) -> None:
    """They lie in a pack that another snapshot needs in part."""
    blocks = random_blocks(4)
    first = save(store, *blocks)
    second = save(store, blocks[0])
    manifest = Path(store.path, "snapshots", first.id, "manifest")
    whole = manifest.read_bytes()
    manifest.write_bytes(b"nonsense")
    third = save(store, blocks[1])
    store.remove(third.id)
    store.prune(1)
    manifest.write_bytes(whole)
    assert store.verify() == []
    assert load(store, first.id) == blocks and load(store, second.id) == blocks[:1]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_directory_is_removed_by_itself(store: Store, tmp_path: Path, kind: str) -> None:
    """Something else has the name of a snapshot, and a prune takes it for one: it is removed, not what it leads to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest").write_bytes(b"somebody's")
    kept = save(store, *random_blocks(1))
    odd = Path(store.path, "snapshots", "20200101-000000000-aaaaaa")
    odd.symlink_to(outside) if kind == "link" else odd.write_bytes(b"")
    with no_more_descriptors():
        assert odd.name in store.prune(1).kept
        store.remove(odd.name)
    assert not os.path.lexists(odd)
    assert (outside / "manifest").read_bytes() == b"somebody's"
    assert store.snapshots() == [kept] and store.verify() == []


def test_a_prune_leaves_nothing_open(store: Store) -> None:
    for _ in range(3):
        save(store, *random_blocks(2))
    with no_more_descriptors():
        store.prune(2)
        store.prune(1, dry_run=True)
        store.remove("latest")


@pytest.fixture
def other_open_store(store: Store) -> Iterator[Store]:
    """A store that this process opens for a second time."""
    save(store, b"x")
    yield Store(store.path)


def test_prune_and_removal_of_packs_take_nothing_that_is_in_use(
    other_open_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.store.store.GATE_PATIENCE", 0)
    store = other_open_store
    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(b"abc"), [3])
        for dry_run in (True, False):
            with pytest.raises(StoreError, match="busy"):
                store.prune(0, dry_run=dry_run)
        saver.publish(b"", "")
    with store.open("latest") as reader:
        with pytest.raises(StoreError, match="busy"):
            store.prune(0)
        for info in store.snapshots():
            report = store.remove(info.id)
            assert "busy" in report.kept and report.packs == ()
        assert store.snapshots() == []
        assert reader.read_block(0) == b"abc", "an open snapshot stays whole"
    assert len(store.prune(0).packs) == 2
    assert files_of(store) == ["locks/spare"]


def test_a_saver_waits_for_a_prune_with_bounds(other_open_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = other_open_store
    place = files.Place(store.path, exclusive=True)
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.05)
    with pytest.raises(StoreError, match="a prune holds its lock"):
        store.writer("tree")
    monkeypatch.undo()
    threading.Timer(0.05, place.close).start()
    with store.writer("tree") as saver:
        saver.publish(b"", "")


@pytest.mark.parametrize(
    ("rest", "cached"),
    [
        ("nfs4 server:/export rw,vers=4.2,local_lock=none", False),
        ("nfs server:/export rw,vers=3,nolock", False),
        ("beegfs beegfs_nodev rw,relatime,cfgFile=/etc/beegfs/beegfs-client.conf", False),
        ("fuse.sshfs host:/scratch rw,user_id=1000", False),
        ("fuse.rclone remote: rw", True),
        ("fuse.s3fs s3fs rw", True),
    ],
)
def test_mounts_whose_directories_may_be_out_of_date(rest: str, cached: bool) -> None:
    assert bool(files.caches_directories(f"36 35 98:0 / /mnt rw shared:1 - {rest}\n")) is cached


def test_many_are_discarded_with_one_look_at_the_packs(store: Store) -> None:
    infos = [save(store, os.urandom(BLOCK)) for _ in range(4)]
    report = store.discard([*infos[:2], infos[0]])
    assert store.ids() == [info.id for info in infos[2:]]
    assert store.snapshots([infos[3].id, infos[0].id, "../lock"]) == infos[3:]
    assert sorted(report.packs) == sorted(info.id for info in infos[:2])
    assert store.discard(infos[:1]).packs == ()  # gone already
    assert store.verify() == []
    assert Store(Path(store.path) / "none").ids() == []


WRITES = """
import sys, time, torpor
store = torpor.Store(sys.argv[1])
print("ready", flush=True)
while True:
    with store.writer("tree"):
        time.sleep(0.05)
"""


def test_a_prune_beside_writers_gets_its_turn(store: Store) -> None:
    """Four of them, so that there is hardly a moment at which nobody has the lock."""
    save(store, b"one")
    save(store, b"two")
    with ExitStack() as stack:
        for _ in range(4):
            command = [sys.executable, "-c", WRITES, store.path]
            writer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(writer.kill)
            assert writer.stdout and writer.stdout.readline() == b"ready\n"
        assert len(store.prune(1).snapshots) == 1


def test_a_prune_does_not_wait_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the store open all the time is not waited for; who comes meanwhile waits no longer than prune does."""
    monkeypatch.setattr("torpor.store.store.GATE_PATIENCE", 0.2)
    save(store, b"one")
    with store.open("latest"):
        with pytest.raises(StoreError, match="busy"):
            store.prune(0)
        save(store, b"two")


def test_nothing_is_freed_where_a_saver_may_not_be_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saver on another host may need what looks unneeded here."""
    first, _ = save(store, b"one"), save(store, b"two")
    monkeypatch.setattr(files, "caches_directories", lambda line: "fuse.s3fs")
    with pytest.raises(StoreError, match=r"for minutes .* fuse.s3fs"):
        store.prune(1)
    assert next(iter(store.snapshots())) == first
    assert "fuse.s3fs" in store.remove(first.id).kept
    assert f"packs/{first.id}.pack" in files_of(store)

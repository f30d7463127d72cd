"""Before a tree is killed its image is read back and held against this host: what is wrong is told while it lives."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import torpor
from tests.leaks import no_more_descriptors
from tests.unit.store.store_content import flip, random_blocks, save
from torpor import procfs
from torpor.dump import proof
from torpor.errors import ImageDamaged, Refused
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.probe import probe
from torpor.store import SnapshotReader, Store


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, int]]:
    """A store with the snapshot of a process that lives on, and its PID."""
    store = Store(tmp_path_factory.mktemp("store"))
    nothing = subprocess.DEVNULL
    with subprocess.Popen(["sleep", "1000"], stdin=nothing, stdout=nothing, stderr=nothing) as process:
        torpor.checkpoint(process.pid, store=store)
        yield store, process.pid
        process.kill()


@pytest.fixture
def reader(saved: tuple[Store, int]) -> Iterator[SnapshotReader]:
    with saved[0].open("latest") as found:
        yield found


def test_what_can_be_woken_passes_while_the_tree_lives(saved: tuple[Store, int], reader: SnapshotReader) -> None:
    """Its own PIDs are in the way, and do not count."""
    with no_more_descriptors():
        proof.prove(reader, {saved[1], *procfs.threads(saved[1])})
        reader.close()


def another_architecture(image: pb.Tree) -> None:
    image.host.architecture = "vax"


def a_parent_that_is_its_child(image: pb.Tree) -> None:
    image.processes.add().CopyFrom(image.processes[0])


def a_file_that_is_not_there(image: pb.Tree) -> None:
    image.files[0].path = b"/nowhere/lib.so"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_architecture, "vax"),
        (a_parent_that_is_its_child, "two processes or threads with one id"),
        (a_file_that_is_not_there, "/nowhere/lib.so: it cannot be opened"),
    ],
)
def test_what_a_restore_would_refuse_is_refused_in_its_words(
    saved: tuple[Store, int],
    reader: SnapshotReader,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pb.Tree], None],
    words: str,
) -> None:
    image = reading.read(reader)
    change(image)
    monkeypatch.setattr(reading, "read", lambda _: image)
    with no_more_descriptors(), pytest.raises(Refused, match="it could not be woken here") as refused:
        proof.prove(reader, {saved[1]})
    assert words in str(refused.value)


def test_a_host_that_can_wake_nothing_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    proof.prove_abilities()
    monkeypatch.setattr(proof, "probe", lambda: dataclasses.replace(probe(), sealed_mappings=True))
    with pytest.raises(Refused, match="it seals the vDSO"):
        proof.prove_abilities()


def test_blocks_of_earlier_snapshots_are_read_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time there is: those were not written just now."""
    monkeypatch.setattr(proof, "SECONDS", 0)
    monkeypatch.setattr(proof, "_TOGETHER", 1)
    old, new = random_blocks(1), random_blocks(20)
    earlier = save(store, *old)
    later = save(store, *new, *old)
    packs = {snapshot.id: Path(store.path, "packs", f"{snapshot.id}.pack") for snapshot in (earlier, later)}
    with store.open(later) as reader:
        rows = [row for row in range(len(reader.blocks)) if reader.info.packs[reader.blocks.packs[row]] == later.id]
        for row in rows:
            flip(packs[later.id], reader.blocks.offsets[row])
        proof._read_back(reader)
        flip(packs[earlier.id], reader.blocks.offsets[next(row for row in range(21) if row not in rows)])
        with pytest.raises(ImageDamaged):
            proof._read_back(reader)


def test_all_blocks_are_read_if_there_is_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "SECONDS", 100)
    monkeypatch.setattr(proof, "_TOGETHER", 7)
    snapshot = save(store, *random_blocks(50))
    pack = Path(store.path, "packs", f"{snapshot.id}.pack")
    with store.open(snapshot) as reader:
        proof._read_back(reader)
        flip(pack, reader.blocks.offsets[33])
        with pytest.raises(ImageDamaged, match="block 33 "):
            proof._read_back(reader)


def test_a_snapshot_without_blocks_is_read_back(store: Store) -> None:
    with store.writer("tree") as saver:
        saver.publish(b"", "")
    with store.open("latest") as reader:
        proof._read_back(reader)
    assert os.path.isdir(store.path)

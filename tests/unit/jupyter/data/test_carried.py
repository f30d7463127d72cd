"""A checkpoint in one file: all of it comes out again, and nothing of a strange file is believed."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.unit.store.store_content import random_blocks, save
from torpor.errors import ImageDamaged, NotFound, Refused, StoreError
from torpor.store import Store
from torpor_jupyter.data import carried
from torpor_jupyter.data.carried import Carried
from torpor_jupyter.data.records import MAX_RECORD, CheckpointRecord

KERNEL = "0b7e-4a-4b-4c-00"
TAG = "jupyter-kernel"


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    """An exported checkpoint."""
    info = save(store, *random_blocks(2), **{TAG: KERNEL})
    record = CheckpointRecord(info.id, KERNEL, "python3", {"key": "secret"}, "/home", name="mine")
    path = tmp_path / "work.torpor"
    carried.export(store, info, Carried(record, "{}", "[1]"), path)
    return path


def rewritten(file: Path, **members: bytes | None) -> Path:
    """The same file with other members."""
    with tarfile.open(file) as archive:
        held = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    with tarfile.open(file, "w") as archive:
        for name, content in (held | members).items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def test_what_was_exported_is_imported(file: Path, tmp_path: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing is left beside it"
    other = Store(tmp_path / "other")
    found = carried.import_file(other, file, TAG)
    (info,) = other.snapshots()
    assert (info.id, found.record.name, found.record.connection) == (found.record.id, "mine", {"key": "secret"})
    assert (found.notebook, found.variables) == ("{}", "[1]")
    assert [name for name in os.listdir(other.path) if name.startswith(".import")] == [], "nor in the store"
    with pytest.raises(Refused, match="has it already"):
        carried.import_file(other, file, TAG)


def test_a_file_that_is_there_is_not_replaced(file: Path, store: Store) -> None:
    record = carried.import_file(Store(file.parent / "other"), file, TAG).record
    with pytest.raises(Refused, match="it exists"):
        carried.export(store, store.snapshots()[0], Carried(record, "", ""), file)
    with pytest.raises(StoreError):
        carried.export(store, store.snapshots()[0], Carried(record, "", ""), file.parent / "no" / "x.torpor")


def test_what_is_not_such_a_file_is_refused(file: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    (tmp_path / "text").write_text("no archive")
    for path, error in ((tmp_path / "none", NotFound), (tmp_path / "text", ImageDamaged), (tmp_path, StoreError)):
        with pytest.raises(error):
            carried.import_file(other, path, TAG)
    whole = file.read_bytes()
    with tarfile.open(file) as archive:
        record = json.load(archive.extractfile(carried.RECORD))  # type: ignore[arg-type]
    strange: list[dict[str, bytes | None]] = [
        {carried.SNAPSHOT: None},
        {carried.SNAPSHOT: b"none"},
        {carried.RECORD: None},
        {carried.RECORD: b"[]"},
        {carried.RECORD: json.dumps(record | {"new": 1}).encode()},
        {carried.RECORD: json.dumps(record | {"kernel_id": "1-2-3-4-5"}).encode()},
        {carried.RECORD: b" " * (MAX_RECORD + 1)},
        {carried.NOTEBOOK: b"\xff"},
    ]
    for members in strange:
        file.write_bytes(whole)
        with pytest.raises(ImageDamaged, match="not an exported"):
            carried.import_file(other, rewritten(file, **members), TAG)
        assert not Path(other.path).exists() or other.snapshots() == []

"""Records are whole or are refused by name: a kernel that is parked is found by them alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.store.power import lasting
from torpor.errors import NotFound, StoreError
from torpor.util import lock_files
from torpor_jupyter.data.attachments import Attachments
from torpor_jupyter.data.records import MAX_RECORD, CheckpointRecord, KernelRecord, ProcessId, Records, SessionRecord

KERNEL = "11111111-2222-3333-4444-555555555555"
ONE, TWO = "20260101-000000000-aaaaaa", "20260102-000000000-bbbbbb"


def kernel() -> KernelRecord:
    me = ProcessId.of(os.getpid())
    session = SessionRecord("s", "/home/me/work.ipynb", "work.ipynb", "notebook")
    return KernelRecord(
        KERNEL, "python3", {"key": "k"}, "/", "/home/me", sessions=[session], server=me, process=me, snapshot=ONE
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    records = Records(tmp_path)
    written = kernel()
    records.write(written)
    assert records.read(KernelRecord, KERNEL) == written
    path = tmp_path / "kernels" / f"{KERNEL}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing of the writing is left"
    assert records.remove(KernelRecord, KERNEL) and not records.remove(KernelRecord, KERNEL)
    with pytest.raises(NotFound):
        records.read(KernelRecord, KERNEL)


@pytest.mark.parametrize(
    "change",
    [{"id": "11111111-2222-3333-4444-666666666666"}, {"new": 1}, {"server": {"pid": 1}}, {"note": "x" * MAX_RECORD}],
    ids=["another's", "a field of another version", "a process that is none", "too large"],
)
def test_a_record_of_something_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    records = Records(tmp_path)
    records.write(kernel())
    path = tmp_path / "kernels" / f"{KERNEL}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match="is not a record of this version"):
        records.read(KernelRecord, KERNEL)


@pytest.mark.parametrize("id", ["", "../kernels/x", "a/b", "x" * 200])
def test_ids_are_no_paths(tmp_path: Path, id: str) -> None:
    with pytest.raises(NotFound):
        Records(tmp_path).read(KernelRecord, id)
    with pytest.raises(NotFound):
        Attachments(tmp_path, ".ipynb", "the notebook").kept(id)


def test_a_record_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path)
    records.write(kernel())

    def fails(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    changed = kernel()
    changed.snapshot = TWO
    with pytest.raises(StoreError, match="No space left on device; make room"):
        records.write(changed)
    assert records.read(KernelRecord, KERNEL).snapshot == ONE
    assert len(list((tmp_path / "kernels").iterdir())) == 1


def test_all_gives_what_can_be_read_and_the_errors(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert list(records.all(CheckpointRecord)) == []
    for id in (TWO, ONE):
        records.write(CheckpointRecord(id, KERNEL, "python3", {}, "/"))
    (tmp_path / "checkpoints" / f"{TWO}.json").write_text("[]")
    (tmp_path / "checkpoints" / "other.json").write_text("{}")
    first, second = records.all(CheckpointRecord)
    assert isinstance(first, CheckpointRecord) and first.id == ONE
    assert isinstance(second, StoreError) and "not a JSON object" in str(second)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "kernels").touch()
    (error,) = Records(tmp_path).all(KernelRecord)
    assert isinstance(error, StoreError) and "Not a directory" in str(error)


def test_the_record_of_a_newer_version_is_not_to_be_removed(tmp_path: Path) -> None:
    """It may hold the key of a kernel that is parked."""
    records = Records(tmp_path)
    records.write(kernel())
    path = tmp_path / "kernels" / f"{KERNEL}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"news": 1}))
    with pytest.raises(StoreError, match="use the version of Torpor that wrote it"):
        records.read(KernelRecord, KERNEL)


def test_a_process_is_not_mistaken_for_a_later_one() -> None:
    me = ProcessId.of(os.getpid())
    assert me.exists()
    assert not ProcessId(me.pid, me.started + 1, me.boot_id, me.namespace).exists()
    assert not ProcessId(me.pid, me.started, "another boot", me.namespace).exists()
    assert not ProcessId(me.pid, me.started, me.boot_id, "pid:[1]").is_here()


def test_equal_attachments_of_a_checkpoint_and_its_parent_are_one_file(tmp_path: Path) -> None:
    notebooks = Attachments(tmp_path, ".ipynb", "the notebook")
    notebooks.keep(ONE, "text")
    notebooks.keep(TWO, "text", like=ONE)
    assert (tmp_path / f"{ONE}.ipynb").stat().st_nlink == 2
    notebooks.remove(ONE)
    notebooks.remove(ONE)
    assert (notebooks.kept(ONE), notebooks.kept(TWO)) == ("", "text")


def test_a_crash_of_the_host_takes_nothing_of_what_is_noted(tmp_path: Path) -> None:
    """Neither a file nor a directory that leads to it, whatever was not synced is gone."""
    folder = tmp_path / "data" / "jupyter"
    notebooks = Attachments(folder / "notebooks", ".ipynb", "the notebook")

    def act() -> None:
        Records(folder).write(kernel())
        notebooks.keep(ONE, "cells")
        notebooks.keep(TWO, "cells", like=ONE)

    kept = {f"data/jupyter/notebooks/{id}.ipynb" for id in (ONE, TWO)} | {f"data/jupyter/kernels/{KERNEL}.json"}
    assert lasting(tmp_path, act) == kept


def test_a_parked_kernel_is_claimed_by_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server of a host that is gone has claimed is taken over, once its file was watched."""
    monkeypatch.setattr(lock_files, "WATCH", 0.1)
    monkeypatch.setattr("torpor_jupyter.data.records._PATIENCE", 0.01)
    records = Records(tmp_path)
    with pytest.raises(NotFound), records.claimed("a-b-c-d-e"):
        pass
    records.write(KernelRecord("a-b-c-d-e", "python3", {}, "/", "/", snapshot="20200101-000000000-aaaaaa"))
    records.write(KernelRecord("a-b-c-d-f", "python3", {}, "/", "/", snapshot="20200101-000000000-aaaaab"))
    with (
        records.claimed("a-b-c-d-e"),
        records.claimed("a-b-c-d-f"),
        pytest.raises(NotFound, match=f"by another server .process {os.getpid()} "),
        records.claimed("a-b-c-d-e"),
    ):
        pass
    other = tmp_path / "claims" / f"a-b-c-d-e,aaaaaaaaaa,1,1,{'0' * 16},node17"
    other.touch()
    with pytest.raises(NotFound, match="process 1 on node17"), records.claimed("a-b-c-d-e"):
        pass
    os.utime(other, (0, 0))
    with records.claimed("a-b-c-d-e"):
        pass
    assert os.listdir(tmp_path / "claims") == []

"""Files that are brought back as they were at a checkpoint: which, and where those go that they replace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.objects.paths.test_bundle import saved
from torpor.image import image_pb2 as pb
from torpor.objects.paths import bundle, fingerprints
from torpor.objects.paths.opener import Openers
from torpor.objects.paths.own_places import Made
from torpor.objects.paths.rollback import Rollback
from torpor.store import Store

ASIDE = ".before-abcdef"
DATABASE = b"SQLite format 3\0" + bytes(100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the job's files lie."""
    made = tmp_path / "job"
    made.mkdir()
    return made


def described(path: Path, flags: int = os.O_RDWR, position: int = 0) -> pb.Tree:
    """An image of a process that has a file open."""
    image = pb.Tree()
    process = image.processes.add(pid=5)
    process.credentials.uids.extend([os.getuid()] * 4)
    process.credentials.gids.extend([os.getgid()] * 4)
    process.fds.add(fd=0, description=0)
    file = image.descriptions.add(flags=flags).file
    file.path, file.position, file.blocks = os.fsencode(path), position, 8
    fingerprints.note_stat(file, path.stat())
    fingerprints.note(file, path.stat(), in_place=True)
    return image


def found(image: pb.Tree) -> tuple[Rollback, list[str]]:
    """What is rolled back, and why something is not."""
    behind = Rollback("20260101-000000000-abcdef")
    with Openers(image) as openers:
        return behind, [reason.why for reason in behind.look(image, openers)]


def brought_back(store: Store, image: pb.Tree, behind: Rollback) -> Made:
    with store.open("latest") as reader, Openers(image) as openers:
        return bundle.put_back(image, reader, openers, behind)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("now", [b"later", b"before and more", b"be", b"befor3"])
def test_what_has_changed_is_brought_back_and_what_is_there_renamed(store: Store, folder: Path, now: bytes) -> None:
    path = folder / "data"
    path.write_bytes(b"before")
    image = described(path)
    saved(store, image)
    assert found(image)[0].paths == [], "it has not changed"
    path.write_bytes(now)
    (folder / f"data{ASIDE}").write_bytes(b"of an earlier time")
    behind, reasons = found(image)
    assert reasons == []
    made = brought_back(store, image, behind)
    kept = {f"data{ASIDE}": b"of an earlier time", f"data{ASIDE}.2": now}
    assert contents(folder) == kept | {"data": b"before"}
    assert behind.notices == [f"{path} is rolled back; as it was until now it is {path}{ASIDE}.2"]
    made.remove()
    assert contents(folder) == {"data": now, f"data{ASIDE}": b"of an earlier time"}, "after a failure all is as before"


def test_what_took_its_name_meanwhile_stays(store: Store, folder: Path) -> None:
    path = folder / "data"
    path.write_bytes(b"before")
    image = described(path)
    saved(store, image)
    path.write_bytes(b"later")
    made = brought_back(store, image, found(image)[0])
    made.undo.pop()()  # the one that was brought back goes first
    path.write_bytes(b"of another")
    made.remove()
    assert contents(folder) == {"data": b"of another", f"data{ASIDE}": b"later"}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_PATH])
def test_what_the_job_only_reads_is_not_rolled_back(store: Store, folder: Path, flags: int) -> None:
    path = folder / "input"
    path.write_bytes(b"before")
    image = described(path, flags)
    saved(store, image)
    path.write_bytes(b"later")
    behind, reasons = found(image)
    assert (behind.paths, reasons) == ([], [])


@pytest.mark.parametrize(
    ("flags", "position", "why", "notice"),
    [
        (os.O_RDWR, 0, "it grew since the checkpoint, and the snapshot does not have its content", ""),
        (os.O_WRONLY, 6, "", "has grown since, and stays: the snapshot does not have its content"),
        (os.O_WRONLY | os.O_APPEND, 0, "", "has grown since, and stays: the snapshot does not have its content"),
    ],
)
def test_what_the_snapshot_lacks(folder: Path, flags: int, position: int, why: str, notice: str) -> None:
    path = folder / "log"
    path.write_bytes(b"before")
    image = described(path, flags, position)
    path.write_bytes(b"before and more")
    behind, reasons = found(image)
    assert behind.paths == []
    assert reasons == [why] * bool(why)
    assert [one.removeprefix(f"the file {path} ") for one in behind.notices] == [notice] * bool(notice)


def test_later_journals_of_a_database_go_with_it(store: Store, folder: Path) -> None:
    path = folder / "base"
    path.write_bytes(DATABASE)
    image = described(path)
    saved(store, image)
    path.write_bytes(DATABASE + b"more")
    for name in ("base-journal", "base-wal", "other-wal"):
        (folder / name).write_bytes(b"of a later time")
    behind, _ = found(image)
    made = brought_back(store, image, behind)
    names = {"base", f"base{ASIDE}", f"base-journal{ASIDE}", f"base-wal{ASIDE}", "other-wal"}
    assert contents(folder).keys() == names
    made.remove()
    assert contents(folder).keys() == {"base", "base-journal", "base-wal", "other-wal"}


def test_a_file_that_is_something_else_now_is_left_to_the_validation(store: Store, folder: Path) -> None:
    path = folder / "data"
    path.write_bytes(b"before")
    image = described(path)
    saved(store, image)
    path.unlink()
    assert found(image)[0].paths == []
    path.mkdir()
    assert found(image)[0].paths == []

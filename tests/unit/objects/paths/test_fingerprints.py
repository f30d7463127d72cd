"""What a file held at a save: one that only grew is told from one that was changed, by what it holds."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import holder
from torpor.image.image_pb2 import FileRef, RegularFile, Tree, Vma
from torpor.objects.fds import descriptors
from torpor.objects.paths import fingerprints
from torpor.objects.paths.fingerprints import WHOLE, WHOLE_IN_PLACE, Change

LARGE = WHOLE * 4


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.truncate(LARGE)
    os.utime(path, ns=(1, 1))
    yield path


def noted(path: Path, *, in_place: bool = False) -> RegularFile:
    said = RegularFile(path=os.fsencode(path))
    was = path.stat()
    fingerprints.note_stat(said, was)
    fingerprints.note(said, was, in_place=in_place)
    return said


def became(said: fingerprints.File, *, in_place: bool = False) -> Change:
    fd = os.open(said.path, os.O_WRONLY)
    try:
        return fingerprints.change(said, fd, in_place=in_place)
    finally:
        os.close(fd)


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as out:
        out.seek(at)
        out.write(data)


def test_one_that_grew_is_known_by_what_it_held_before(file: Path) -> None:
    said = noted(file)
    assert became(said) is Change.NONE
    put(file, LARGE, b"more")
    assert became(said) is Change.GROWN
    put(file, LARGE - 1, b"x")
    assert became(said) is Change.CHANGED, "its old end is another"
    os.truncate(file, LARGE - 1)
    assert became(said) is Change.CUT


@pytest.mark.parametrize("at", [0, 100, LARGE // 16, LARGE - 1])
def test_a_change_where_nobody_appends_is_seen(file: Path, at: int) -> None:
    said = noted(file)
    put(file, at, b"x")
    put(file, LARGE, b"more")
    assert became(said) is Change.CHANGED


def test_a_file_that_is_written_anywhere_is_known_as_a_whole(file: Path) -> None:
    said = noted(file, in_place=True)
    assert said.content.whole
    put(file, LARGE // 2 + 77777, b"x")
    put(file, LARGE, b"more")
    assert became(said, in_place=True) is Change.CHANGED
    os.truncate(file, WHOLE_IN_PLACE + 1)
    said = noted(file, in_place=True)
    put(file, WHOLE_IN_PLACE + 1, b"more")
    assert not said.content.whole and became(said, in_place=True) is Change.CHANGED, "samples are no proof of that"


def test_the_same_content_is_the_same_file(file: Path, tmp_path: Path) -> None:
    said = noted(file)
    (tmp_path / "copy").write_bytes(file.read_bytes())
    os.utime(tmp_path / "copy", ns=(1, 1))
    os.rename(tmp_path / "copy", file)
    assert became(said) is Change.NONE, "a copy, with its time"
    file.touch()
    assert became(said) is Change.CHANGED, "nobody looked at all of it"
    file.write_bytes(b"short")
    said = noted(file)
    file.write_bytes(b"short")
    assert became(said) is Change.NONE
    file.write_bytes(b"other")
    assert became(said) is Change.CHANGED


def test_what_changed_while_it_was_looked_at_is_not_known(file: Path) -> None:
    was = file.stat()
    said = RegularFile(path=os.fsencode(file))
    fingerprints.note_stat(said, was)
    put(file, 5, b"x")
    fingerprints.note(said, was, in_place=False)
    assert not said.content.digest and became(said) is Change.CHANGED
    was = file.stat()
    fingerprints.note_stat(said, was)
    put(file, LARGE, b"more")
    fingerprints.note(said, was, in_place=False)
    assert said.content.digest and became(said) is Change.GROWN


def test_what_is_written_through_a_mapping_has_no_time(file: Path) -> None:
    said = noted(file, in_place=True)
    put(file, 0, b"x")
    os.utime(file, ns=(1, 1))
    now = file.stat()
    said.ctime_ns, said.mtime_ns = now.st_ctime_ns, now.st_mtime_ns
    assert became(said, in_place=True) is Change.CHANGED
    assert became(said) is Change.NONE


def test_a_file_that_is_mapped_for_writing_is_known_as_a_whole_or_not_at_all(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a tree that runs on has changed it, its times do not tell."""

    unwritten = {(file.stat().st_dev, file.stat().st_ino)}

    def mapped(*, runs_on: bool) -> FileRef:
        image = Tree()
        image.processes.add().memory.vmas.add(kind=Vma.FILE_SHARED, may_write=True, file=0)
        fingerprints.note_stat(image.files.add(path=os.fsencode(file)), file.stat())
        fingerprints.note_stat(image.files.add(path=b"/not/mapped"), file.stat())
        image.files[1].ino += 1
        fingerprints.note_mapped(image, (lambda: unwritten) if runs_on else None)
        assert not image.files[1].content.digest
        return image.files[0]

    for runs_on in (True, False):
        said = mapped(runs_on=runs_on)
        assert said.content.whole and became(said, in_place=True) is Change.NONE
        put(file, LARGE // 2 + 77777, b"x" if runs_on else b"y")
        assert became(said, in_place=True) is Change.CHANGED
    unwritten.clear()
    assert became(mapped(runs_on=True), in_place=True) is Change.UNKNOWN
    monkeypatch.setattr(fingerprints, "WHOLE_MAPPED", LARGE - 1)
    assert became(mapped(runs_on=True), in_place=True) is Change.UNKNOWN
    assert became(mapped(runs_on=False), in_place=True) is Change.NONE


def test_what_is_written_through_a_mapping_between_two_saves_is_in_the_second_hash(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -(10**12))
    image = Tree()
    image.processes.add().memory.vmas.add(kind=Vma.FILE_SHARED, may_write=True, file=0)
    image.files.add(path=os.fsencode(file))
    digests = set()
    for byte in (b"x", b"y"):
        put(file, 0, byte)
        os.utime(file, ns=(1, 1))
        real = os.stat(file)
        monkeypatch.setattr(fingerprints, "_times", lambda _, real=real: (real.st_dev, real.st_ino, real.st_size, 1, 1))
        said = image.files[0]
        fingerprints.note_stat(said, real)
        said.ctime_ns = 1
        said.content.Clear()
        fingerprints.note_mapped(image, None)
        digests.add(said.content.digest)
    assert len(digests) == 2


def test_in_a_series_a_file_that_stays_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(file, ns=(1, 1))
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -(10**12))
    monkeypatch.setattr(fingerprints, "_known", {})
    first = noted(file)
    reads: list[int] = []

    def read(*_args: object, **_named: object) -> bytes:
        reads.append(1)
        return b"read"

    monkeypatch.setattr(fingerprints, "digest", read)
    assert noted(file) == first and not reads
    put(file, 0, b"x")
    assert noted(file).content.digest == b"read"


def reasons(image: Tree) -> str:
    return "\n".join(map(str, descriptors.validate(image)))


def test_a_database_that_nobody_had_locked_may_be_changed_by_others(tmp_path: Path) -> None:
    code = """
import sqlite3
base = sqlite3.connect("base", isolation_level=None)
base.execute("create table if not exists t(a)")
if TRANSACTION:
    base.execute("begin immediate")
ready(); wait()
"""
    for transaction in (False, True):
        with holder(code.replace("TRANSACTION", str(transaction)), cwd=tmp_path) as tree:
            tree.ready()
            image = tree.dump()
        assert reasons(image) == ""
        with sqlite3.connect(tmp_path / "base") as base:
            base.execute("insert into t values(1)")
        base.close()
        assert ("base: it was changed since" in reasons(image)) is transaction


def test_a_name_that_leads_to_another_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    with holder("f = os.open('file', os.O_RDONLY); ready(); wait()", cwd=tmp_path) as tree:
        tree.ready()
        image = tree.dump()
    (tmp_path / "new").write_bytes(b"two and more")
    os.rename(tmp_path / "new", tmp_path / "file")
    assert "put the old file back" in reasons(image), "also of one that is only read, and longer"

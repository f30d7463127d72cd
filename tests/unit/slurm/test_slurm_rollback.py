"""Output files are brought back to their length at the snapshot that is woken."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from torpor.errors import RestoreFailed
from torpor.image import Tree
from torpor_slurm import rollback


def image_of(path: Path, flags: int, position: int, size: int, ino: int | None = None) -> Tree:
    image = Tree()
    description = image.descriptions.add(flags=flags)
    description.file.path = os.fsencode(path)
    description.file.position, description.file.size = position, size
    description.file.ino = path.stat().st_ino if ino is None else ino
    return image


def test_output_is_brought_back_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    aside = rollback.cut(tail, tmp_path, "run1")
    assert path.read_text() == "one\n"
    assert aside.read_text() == "two\nthree\n"


@pytest.mark.parametrize(
    ("flags", "position", "size", "found"),
    [
        (os.O_WRONLY | os.O_APPEND, 0, 4, 1),
        (os.O_WRONLY, 4, 4, 1),
        (os.O_RDWR, 2, 4, 0),
        (os.O_RDONLY, 4, 4, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 9, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 8, 0),
    ],
)
def test_only_what_is_written_at_its_end_is_cut(
    tmp_path: Path, flags: int, position: int, size: int, found: int
) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert len(list(rollback.tails(image_of(path, flags, position, size)))) == found
    assert list(rollback.tails(image_of(path, flags, position, size, ino=1))) == []


def test_output_that_cannot_be_kept_aside_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    with pytest.raises(RestoreFailed, match="cannot be truncated to its 4 bytes"):
        rollback.cut(tail, tmp_path / "nowhere", "run1")
    assert path.read_text() == "one\ntwo\n"


def test_the_ends_of_two_files_with_one_name_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk before the file is cut."""
    done: list[str] = []
    sync = os.fsync

    def synced(fd: int) -> None:
        done.append(f"{stat.S_ISDIR(os.fstat(fd).st_mode)} {path.stat().st_size}")
        sync(fd)

    monkeypatch.setattr(os, "fsync", synced)
    (tmp_path / "cut").mkdir()
    kept = []
    for folder, words in (("a", b"one and more"), ("b", b"one or less")):
        path = tmp_path / folder / "out"
        path.parent.mkdir()
        path.write_bytes(words)
        kept.append(rollback.cut(rollback.Tail(str(path), 3, len(words)), tmp_path / "cut", "run1"))
        assert path.read_bytes() == b"one"
    assert [copy.read_bytes() for copy in kept] == [b" and more", b" or less"]
    assert done == ["False 12", "True 12", "False 11", "True 11"]


def test_a_file_that_is_open_twice_keeps_all_that_was_in_it(tmp_path: Path) -> None:
    """Of two lengths that a snapshot tells, as the file grew in between, the longer one counts."""
    path = tmp_path / "out"
    path.write_bytes(b"one, two, three")
    image = Tree()
    for size in (8, 3):
        description = image.descriptions.add(flags=os.O_WRONLY | os.O_APPEND)
        description.file.path, description.file.size, description.file.ino = bytes(path), size, path.stat().st_ino
    assert list(rollback.tails(image)) == [rollback.Tail(str(path), 8, 15)]


def test_one_file_that_is_not_cut_does_not_keep_others_from_it(tmp_path: Path) -> None:
    """Read, gone, a link by now: what is written behind them is found."""
    path = tmp_path / "out"
    path.write_bytes(b"one, two")
    link = tmp_path / "link"
    link.symlink_to(path)
    image = Tree()
    for name, flags in (
        (path, os.O_RDONLY),
        (tmp_path / "gone", os.O_WRONLY),
        (link, os.O_WRONLY),
        (path, os.O_WRONLY),
    ):
        description = image.descriptions.add(flags=flags | os.O_APPEND)
        description.file.path, description.file.size, description.file.ino = bytes(name), 0, path.stat().st_ino
    assert list(rollback.tails(image)) == [rollback.Tail(str(path), 0, 8)]

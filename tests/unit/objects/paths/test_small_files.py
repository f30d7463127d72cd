"""Which small files of a job are kept in its images."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder
from torpor.errors import SettingError
from torpor.objects.fds import descriptors
from torpor.objects.paths import small_files
from torpor.objects.paths.small_files import SmallFiles

MAKE = """
def make(name, size=3, flags=os.O_RDWR):
    fd = os.open(name, flags | os.O_CREAT)
    os.pwrite(fd, b"x" * size, 0)
    return fd
"""


def kept(code: str, cwd: Path) -> set[str]:
    """The names of the files that are kept of a program."""
    with holder(MAKE + code + "\nready(); wait()", cwd=cwd) as tree:
        tree.ready()
        tree.stop()
        small = descriptors.grab(tree.pids).small
        assert small is not None
        return {os.path.basename(os.fsdecode(copy.name)) for copy in small}


def is_older_than_a_job(path: Path) -> None:
    """Wait until a job that starts is younger than a file."""
    while time.time_ns() < path.stat().st_ctime_ns + 3 * small_files._LAG_NS:
        time.sleep(0.01)


def test_what_the_job_made_is_kept(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "old").write_text("old")
        (tmp / "old-but-written").write_text("old")
        is_older_than_a_job(tmp / "old-but-written")
        code = """
a = make("made"); b = os.open("old", os.O_RDONLY); c = os.open("old-but-written", os.O_RDWR)
d = make("closed"); os.close(d); e = os.open("closed", os.O_RDONLY); f = os.open("made", os.O_RDONLY)
m = make("unpacked"); os.close(m); os.utime("unpacked", (1, 1)); m = os.open("unpacked", os.O_RDONLY)
g = make("name"); os.close(g); g = os.open("name", os.O_PATH)
h = open("/proc/self/status"); i = os.open("/dev/shm", os.O_RDONLY)
"""
        assert kept(code, tmp) == {"made", "old-but-written", "closed", "unpacked"}

    acting(body)


def test_the_smallest_are_kept_first_and_none_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_SMALL_FILES", "1K")
    code = "x = [make(str(size), size) for size in (1000, 1025, 1024, 900, 900 + 1, 850)]"
    assert kept(code, tmp_path) == {"850", "900", "901", "1000"}
    monkeypatch.setenv("TORPOR_SMALL_FILES", "0")
    assert kept(code, tmp_path) == set()
    monkeypatch.setenv("TORPOR_SMALL_FILES", "much")
    with pytest.raises(SettingError, match=r"\$TORPOR_SMALL_FILES is 'much': it must be a size such as 4M, 512K"):
        SmallFiles(os.getpid())
    monkeypatch.setenv("TORPOR_SMALL_FILES", " 2m ")
    assert small_files.limit() == 2 << 20


def test_files_of_others_are_not_kept(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    (tmp_path / "theirs").write_text("theirs")
    os.chown(tmp_path / "theirs", 1, 1)
    assert kept("a = make('own'); b = os.open('theirs', os.O_RDWR)", tmp_path) == {"own"}


def test_a_lease_is_not_broken_by_the_look(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        code = "a = make('leased', 3); fcntl.fcntl(a, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
        assert kept(code, tmp) == set()

    acting(body)


def test_one_that_was_removed_since_the_freeze_is_no_reason_to_refuse(tmp_path: Path) -> None:
    fds, image = dumped(MAKE + "f = make('gone', 5); os.lseek(f, 2, 0); ready(f=f); wait()", cwd=tmp_path)
    (one,) = (one for one in image.descriptions if one.WhichOneof("kind") == "file")
    assert one.file.content.whole and one.file.size == 5 and fds
    with holder(MAKE + "f = make('brief'); ready(f=f); wait()", cwd=tmp_path) as tree:
        tree.ready()
        tree.stop()
        found = descriptors.grab(tree.pids)
        (tmp_path / "brief").unlink()
        assert descriptors.unsupported(found) == []


def test_times_of_the_tree_are_told_from_older_ones(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    is_older_than_a_job(tmp_path / "old")
    assert kept("a = os.open('old', os.O_RDONLY)", tmp_path) == set()


def test_one_for_which_there_is_no_descriptor_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    small = SmallFiles(os.getpid())

    def refused(number: int) -> None:
        def call(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", call)
            small.take(str(path), str(path), path.stat(), written=True)

    refused(errno.EACCES)
    assert list(small) == []
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        with pytest.raises(OSError):
            refused(number)

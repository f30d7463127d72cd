"""Which directories and named pipes an image has, and how missing ones are made again."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.objects.paths.test_small_files import is_older_than_a_job
from torpor.image import image_pb2 as pb
from torpor.objects.paths import own_places
from torpor.objects.paths.opener import Openers
from torpor.objects.paths.own_places import Made
from torpor.objects.paths.small_files import SmallFiles


def described(cwd: Path) -> pb.Tree:
    """An image of a process that stands in a directory."""
    image = pb.Tree()
    process = image.processes.add(pid=5, cwd=os.fsencode(cwd))
    process.credentials.uids.extend([os.getuid()] * 4)
    process.credentials.gids.extend([os.getgid()] * 4)
    return image


def began(at_ns: int) -> SmallFiles:
    """The small files of a job that began at a time."""
    small = SmallFiles(os.getpid())
    small.since_ns = at_ns
    return small


def test_what_is_older_than_the_job_is_not_its_own(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    is_older_than_a_job(older)
    (tmp_path / "mine").mkdir()
    since = (tmp_path / "mine").stat().st_ctime_ns
    (older / "new").touch()  # which changes it, but it was made before
    if not own_places._born_ns(os.fsencode(older)):
        pytest.skip("this file system does not tell when a file was made")
    for name, used in (("older", False), ("mine", True)):
        image = described(tmp_path / name)
        own_places.note(image, began(since))
        assert [place.path for place in image.folders if place.used] == [os.fsencode(tmp_path / name)] * used


def test_what_belongs_to_another_user_or_is_the_kernels_is_not_its_own(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc/self")):
        image = described(path)
        small = began(0)
        small.uid += path == tmp_path
        own_places.note(image, small)
        assert not image.folders


def test_a_pipe_is_made_again_in_its_directories_with_mode_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    for path, mode in ((folder / "pipe", 0o620), (folder, 0o3750), (folder.parent, 0o711)):
        path.chmod(mode)
        os.utime(path, ns=(5, 7_000_000_001))
    with suppress(OSError):  # not every file system has them
        os.setxattr(folder, "user.tag", b"of the folder")
    attributes = {name: os.getxattr(folder, name) for name in os.listxattr(folder)}
    image = described(Path("/"))
    image.processes[0].fds.add(fd=1, description=0)
    image.descriptions.add().fifo.path = os.fsencode(folder / "pipe")
    own_places.note(image, began(0))
    was = {path: path.stat() for path in (folder / "pipe", folder, folder.parent)}
    (folder / "pipe").unlink()
    folder.rmdir()
    folder.parent.rmdir()
    made = Made()
    own_places.make(image, Openers(image), made)
    made.settle()
    for path, status in was.items():
        now = path.stat()
        assert (now.st_mode, now.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
    assert {name: os.getxattr(folder, name) for name in os.listxattr(folder)} == attributes
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
    assert made.notices == [f"the named pipe {folder / 'pipe'}, which the job had made, was missing and is made again"]
    (folder / "somebody's").touch()
    made.remove()
    assert os.listdir(folder) == ["somebody's"], "a directory that somebody uses stays"


def test_a_directory_that_had_more_in_it_than_the_image_has_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "closed").write_text("the job may read it later")
    image = described(folder)
    own_places.note(image, began(0))
    assert [place.lacks for place in image.folders if place.used] == [b"closed"]
    (folder / "closed").unlink()
    folder.rmdir()
    opener = Openers(image).path(os.fsencode(folder))
    why = own_places.why_missing(image, os.fsencode(folder), FileNotFoundError(), opener)
    assert why == "it is missing, and cannot be made again: closed was in it, which the snapshot does not have"
    own_places.make(image, Openers(image), Made())
    assert not folder.exists()

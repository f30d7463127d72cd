"""Attributes of files that only the tree has: read from one open file and given to another."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

import pytest

from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.objects.paths import file_attributes
from torpor.objects.paths.opener import Opener, Openers
from torpor.remote.sys import memfd_create

NODUMP, APPEND = 0x40, 0x20
OLD = (1_000_000_005, 2_000_000_007)
OTHER = 12345
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def mine() -> Opener:
    return Openers(pb.Tree()).process(pb.Process())


def opener_of(uid: int) -> Opener:
    """The opener for a process of this user."""
    process = pb.Process()
    process.credentials.uids.extend([uid] * 4)
    process.credentials.gids.extend([uid] * 4)
    return Openers(pb.Tree(processes=[process])).process(process)


def described(fd: int) -> pb.SharedMemory:
    shared = pb.SharedMemory(kind=pb.SharedMemory.UNLINKED, name=b"/tmp/it")
    file_attributes.describe(os.fstat(fd), file_attributes.take(fd), shared)
    return shared


def given(shared: pb.SharedMemory, path: Path, opener: Opener | None = None) -> tuple[int, list[str]]:
    """A new file with the attributes, and what could not be given."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    warnings = list(file_attributes.restore_flags(fd, shared))
    os.write(fd, b"content")
    return fd, warnings + list(file_attributes.restore(fd, shared, opener or mine()))


def set_flags(fd: int, flags: int) -> bool:
    """Whether the file system has them."""
    try:
        fcntl.ioctl(fd, file_attributes.FS_IOC_SETFLAGS, struct.pack("=I4x", flags))
    except OSError as error:
        assert error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM)
        return False
    return True


@pytest.mark.parametrize("times", [OLD, (0, 0), (0, 5), (5, 0), (-1_000_000_000, -1)])
def test_a_file_has_its_mode_and_times_again(tmp_path: Path, times: tuple[int, int]) -> None:
    """Also one that was changed in 1970, or before."""
    fd = os.open(tmp_path / "was", os.O_RDWR | os.O_CREAT)
    os.fchmod(fd, 0o640)
    os.utime(fd, ns=times)
    if (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) != times:
        pytest.skip("this file system does not keep such times")
    again, warnings = given(described(fd), tmp_path / "again")
    status = os.fstat(again)
    assert warnings == []
    assert (stat.S_IMODE(status.st_mode), status.st_atime_ns, status.st_mtime_ns) == (0o640, *times)
    os.close(fd)
    os.close(again)


def test_an_older_image_has_no_times_and_no_owner(tmp_path: Path) -> None:
    shared = pb.SharedMemory(kind=pb.SharedMemory.MEMFD, mode=0o600)
    fd, warnings = given(shared, tmp_path / "file")
    assert warnings == []
    assert os.fstat(fd).st_mtime > 1_000_000_000 and os.fstat(fd).st_uid == os.geteuid()
    os.close(fd)


def test_extended_attributes_and_flags_come_back(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "was", os.O_RDWR | os.O_CREAT)
    try:
        os.setxattr(fd, "user.note", b"a\0b")
        os.setxattr(fd, "user.empty", b"")
    except OSError as error:
        pytest.skip(f"no attributes of users here: {error.strerror}")
    flagged = set_flags(fd, NODUMP)
    again, warnings = given(described(fd), tmp_path / "again")
    assert warnings == []
    assert {name: os.getxattr(again, name) for name in os.listxattr(again) if name.startswith("user.")} == {
        "user.note": b"a\0b",
        "user.empty": b"",
    }
    if flagged:
        assert file_attributes.take(again).flags & NODUMP
    os.close(fd)
    os.close(again)


def test_what_the_new_file_cannot_have_is_said(tmp_path: Path) -> None:
    shared = pb.SharedMemory(kind=pb.SharedMemory.MEMFD, name=b"mine", mode=0o600)
    shared.attributes.add(name=b"user.long", value=b"x" * (1 << 17))
    shared.attributes.add(name=b"security.capability", value=b"x")
    shared.attributes.add(name=b"trusted.x", value=b"x")
    fd, (warning,) = given(shared, tmp_path / "file")
    assert warning.startswith("the file in memory mine has no attribute user.long any more")
    assert not {"security.capability", "trusted.x"} & set(os.listxattr(fd)), "no checkpoint writes those"
    os.close(fd)


def test_a_file_in_memory_is_read_as_one(tmp_path: Path) -> None:
    fd = memfd_create(b"x")
    found = file_attributes.take(fd, 5)
    assert (found.seals, found.lost, found.forbids_writing) == (5, (), False)
    os.close(fd)


@by_root
def test_flags_that_forbid_writing_are_seen(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    if not set_flags(fd, APPEND):
        pytest.skip("this file system has no such flags")
    try:
        assert file_attributes.take(fd).forbids_writing
        assert file_attributes.take(fd).flags == 0, "it is refused, not kept"
    finally:
        set_flags(fd, 0)
        os.close(fd)


@by_root
def test_a_users_file_is_theirs_again_and_not_more_than_that(tmp_path: Path) -> None:
    """Root makes no program for a user's tree that runs as somebody else."""
    shared = pb.SharedMemory(kind=pb.SharedMemory.UNLINKED, name=b"it", mode=0o4755, uid=OTHER, gid=OTHER, mtime_ns=5)
    fd, warnings = given(shared, tmp_path / "own", opener_of(OTHER))
    status = os.fstat(fd)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), warnings) == (OTHER, OTHER, 0o4755, [])
    os.close(fd)
    fd, (warning,) = given(shared, tmp_path / "others", opener_of(OTHER + 1))
    status = os.fstat(fd)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (OTHER, 0o755)
    assert "has the mode 755 now, not 4755: it is another user's" in warning
    os.close(fd)


def test_a_file_of_another_user_is_said_to_be_ones_own_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "is_root", lambda: False)
    shared = pb.SharedMemory(
        kind=pb.SharedMemory.UNLINKED, name=b"it", mode=0o600, uid=os.geteuid() + 1, gid=os.getegid(), mtime_ns=5
    )
    fd, (warning,) = given(shared, tmp_path / "file")
    assert f"is yours now: it belonged to user {os.geteuid() + 1} and group {os.getegid()}" in warning
    os.close(fd)

"""Mapped files: known by path and inode, and what is no longer what it was."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from torpor import procfs
from torpor.errors import CheckpointFailed, Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory import mapped_files
from torpor.objects.memory.mapped_files import MappedFiles, build_id, mapped_both_ways
from torpor.objects.paths.opener import Openers

PAGE = 4096


def mapped(path: Path, inode: int, device: int) -> procfs.Mapping:
    numbers = b"%x:%x" % (os.major(device), os.minor(device))
    return procfs.Mapping(PAGE, 2 * PAGE, b"r--p", 0, numbers, inode, os.fsencode(path))


def index(files: MappedFiles, path: Path) -> int | None:
    return files.index(mapped(path, path.stat().st_ino, path.stat().st_dev))


def id_of(content: bytes, path: Path) -> bytes:
    path.write_bytes(content)
    with path.open("rb") as file:
        return build_id(file.fileno())


def test_a_file_is_noted_once(tmp_path: Path) -> None:
    image = pb.Tree()
    files = MappedFiles(image)
    for name in "aba":
        path = tmp_path / name
        path.touch()
        index(files, path)
    assert [os.path.basename(file.path) for file in image.files] == [b"a", b"b"]


def test_a_path_that_leads_elsewhere_is_that_of_no_file(tmp_path: Path) -> None:
    """Whatever is there now: another file, none, a file in the place of a directory, a socket, a loop of links."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.touch()
    inode, device = path.stat().st_ino, path.stat().st_dev

    def found(path: Path, inode: int) -> int | None:
        return MappedFiles(pb.Tree()).index(mapped(path, inode, device))

    assert found(path, inode) == 0
    assert found(path, inode + 1) is None
    path.unlink()
    assert found(path, inode) is None
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        assert found(path, inode) is None
    path.unlink()
    path.symlink_to(path)
    assert found(path, inode) is None
    path.unlink()
    os.mkfifo(path)
    assert found(path, inode + 1) is None, "and nobody waits for its other end"
    shutil.rmtree(folder)
    folder.touch()
    assert found(path, inode) is None


def test_what_cannot_be_read_is_no_file_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (errno.EACCES, errno.EIO, errno.EMFILE):

        def refused(*_: object, error: int = error) -> int:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch, pytest.raises(CheckpointFailed, match="the mapped file /x cannot be read"):
            patch.setattr(os, "open", refused)
            MappedFiles(pb.Tree()).index(mapped(Path("/x"), 1, 1))


def test_programs_that_are_gone_are_told_apart_by_name(tmp_path: Path) -> None:
    path = tmp_path / "program"
    image = pb.Tree()
    files = MappedFiles(image)
    processes = []
    try:
        for _ in range(2):
            shutil.copy("/bin/sleep", path)
            processes.append(subprocess.Popen([path, "1000"]))
            path.unlink()
        assert files.program(processes[0].pid) == 0
        assert files.program(processes[0].pid) == 0
        assert image.files[0].path == os.fsencode(path) + b" (deleted)"
        assert files.program(processes[1].pid) == 1
        assert image.files[1].path == os.fsencode(path) + b" (deleted) (deleted)"
        assert len(files.gone) == 2
    finally:
        files.close()
        for process in processes:
            process.kill()
            process.wait()
    assert not files.gone


def test_an_id_is_found_or_there_is_none(tmp_path: Path) -> None:
    """Whatever is in a file: its headers are not trusted."""
    path = tmp_path / "file"
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[5:7] = b"\x01\x01"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 1)
    note = struct.pack("<III", 4, 8, 3) + b"GNU\0" + b"12345678"
    program = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    assert id_of(bytes(header) + program + note, path) == b"12345678"
    for offset, kind, value in (
        (32, "<Q", 2**63), (32, "<Q", 2**64 - 1), (54, "<H", 0), (56, "<H", 65535), (64 + 8, "<Q", 2**64 - 1),
        (64 + 32, "<Q", 2**40), (64 + 32, "<Q", 3), (120, "<I", 2**32 - 1), (124, "<I", 2**32 - 1), (128, "<I", 4),
    ):  # fmt: skip
        changed = bytearray(bytes(header) + program + note)
        struct.pack_into(kind, changed, offset, value)
        assert id_of(bytes(changed), path) in (b"", b"12345678", note[16:]), (offset, value)
    assert id_of(b"", path) == id_of(b"#!/bin/sh\n", path) == id_of(bytes(header), path) == b""


def reasons(image: pb.Tree) -> list[Reason]:
    return list(mapped_files.validate(image, Openers(image)))


def mapping(path: Path, kind: Any) -> pb.Tree:
    """A file of which one page is mapped."""
    image = pb.Tree()
    index(MappedFiles(image), path)
    process = image.processes.add(pid=1)
    process.memory.vmas.add(start=PAGE, end=2 * PAGE, kind=kind, file=0)
    return image


def test_a_private_file_must_be_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    image = mapping(path, pb.Vma.FILE_PRIVATE)
    assert reasons(image) == []
    os.utime(path, ns=(1, 1))
    (reason,) = reasons(image)
    assert (reason.changed, "its size or modification time has changed" in reason.why) == (str(path), True)
    path.write_bytes(b"short")
    (reason,) = reasons(image)
    assert not reason.changed, "its pages would have no file: it cannot be taken as it is"
    path.unlink()
    (reason,) = reasons(image)
    assert "it cannot be opened: No such file" in reason.why
    path.mkdir()
    (reason,) = reasons(image)
    assert "it is no regular file any more" in reason.why


def test_a_shared_file_may_have_grown_and_not_shrunk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    image = mapping(path, pb.Vma.FILE_SHARED)
    path.write_bytes(bytes(3 * PAGE))
    assert reasons(image) == []
    path.write_bytes(b"x")
    (reason,) = reasons(image)
    assert f"it has 1 bytes, and {PAGE} were mapped" in reason.why


def test_what_some_may_write_and_others_only_read_is_opened_twice() -> None:
    image = pb.Tree()
    for kind in (pb.SharedMemory.MEMFD, pb.SharedMemory.SYSTEM_V):
        image.shared.add(kind=kind)
    vmas = image.processes.add(pid=1).memory.vmas
    vmas.add(kind=pb.Vma.FILE_SHARED, file=0, may_write=True)
    vmas.add(kind=pb.Vma.FILE_SHARED, file=1)
    assert mapped_both_ways(image) == set(), "each in one way"
    vmas.add(kind=pb.Vma.FILE_SHARED, file=0)
    vmas.add(kind=pb.Vma.SHARED, shared=0)
    vmas.add(kind=pb.Vma.SHARED, shared=1)
    assert mapped_both_ways(image) == {(pb.Vma.FILE_SHARED, 0), (pb.Vma.SHARED, 0)}


def test_a_library_that_was_changed_has_the_same_build_id_but_another_size(tmp_path: Path) -> None:
    """patchelf and strip keep the id."""
    path = tmp_path / "program"
    shutil.copy("/proc/self/exe", path)
    with path.open("rb") as file:
        known = build_id(file.fileno())
    if not known:
        pytest.skip("this Python has no build id")
    image = pb.Tree()
    image.processes.add().memory.vmas.add(kind=pb.Vma.FILE_PRIVATE, file=0)
    image.files.add(path=os.fsencode(path), build_id=known, size=path.stat().st_size)
    with Openers(image) as openers:
        assert list(mapped_files.validate(image, openers)) == []
        with path.open("ab") as file:
            file.write(b"more")
        (reason,) = mapped_files.validate(image, openers)
    assert "it has the same build id, but" in reason.why

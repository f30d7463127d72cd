"""Descriptors of files in memory: known by where they lie, with seals and positions; opened as they were."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, FdReference, dumped, holder, opened
from torpor.image import image_pb2 as pb
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors, memfd
from torpor.objects.fds.memfd import MemoryDescriptor
from torpor.objects.kind import GrabbedDescriptors
from torpor.remote.sys import memfd_create

MADE = """
m = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
os.write(m, b"content"); os.lseek(m, 3, 0)
again = os.open(f"/proc/self/fd/{m}", os.O_RDONLY); copy = os.dup(m)
"""


@contextmanager
def grabbed(code: str) -> Iterator[tuple[FdReference, GrabbedDescriptors]]:
    """A process that stands still, and what it has."""
    with holder(
        code + "\nready(**{n: v for n, v in globals().items() if n in ('m', 'again', 'copy')})\nwait()"
    ) as tree:
        tree.ready()
        tree.stop()
        yield tree, descriptors.grab(tree.pids)


def memory(tree: GrabbedDescriptors) -> list[bytes]:
    """The names of the files in memory."""
    return [file.link for file in descriptors.memory_files(tree)]


def test_a_file_is_taken_once_and_its_descriptions_each(acting: Acting) -> None:
    def body(_: Path) -> None:
        seal = "fcntl.fcntl(m, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)"
        with grabbed(MADE + seal) as (tree, found):
            (file,) = descriptors.memory_files(found)
            assert file.link == b"/memfd:mine (deleted)" and file.attributes.seals == fcntl.F_SEAL_SHRINK
            fd = file.open()
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)
            positions = {open_file.references[0].fd: open_file.position for open_file in found.of(MemoryDescriptor)}
            assert positions == {tree.fds["m"]: 3, tree.fds["again"]: 0}

    acting(body)


def test_a_file_on_disk_with_such_a_name_is_none(tmp_path: Path) -> None:
    name = tmp_path / "memfd:mine (deleted)"
    name.write_bytes(b"")
    with grabbed(f"os.chdir({str(tmp_path)!r}); m = os.open('memfd:mine (deleted)', os.O_RDWR)") as (_, found):
        assert memory(found) == []


def test_seals_that_cannot_be_read_are_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file system without seals says EINVAL."""
    real = fcntl.fcntl

    def failing(number: int) -> object:
        def call(fd: int, command: int, *more: int) -> int:
            if command == memfd.F_GET_SEALS:
                raise OSError(number, os.strerror(number))
            return real(fd, command, *more)

        return call

    fd = memfd_create(b"x")
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EINVAL))
    assert memfd._seals(fd) == 0
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EPERM))
    with pytest.raises(PermissionError):
        memfd._seals(fd)
    os.close(fd)


def test_they_come_back_at_their_positions_as_one_file() -> None:
    fds, image = dumped(MADE + "\nready(m=m, again=again, copy=copy)\nwait()")
    image.shared.add(kind=pb.SharedMemory.MEMFD, name=b"mine", size=7)
    made = memfd_create(b"mine")
    os.write(made, b"content")
    with opened(image, shared=lambda index: made) as woken:
        m, again, copy = (woken(fds[name]) for name in ("m", "again", "copy"))
        assert m == copy
        assert (os.lseek(m, 0, os.SEEK_CUR), os.lseek(again, 0, os.SEEK_CUR)) == (3, 0)
        os.pwrite(m, b"C", 0)
        assert os.pread(again, 7, 0) == b"Content"
        with pytest.raises(OSError, match="Bad file"):
            os.write(again, b"x")
    os.close(made)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("m = os.memfd_create('x'); m = os.open(f'/proc/self/fd/{m}', os.O_PATH)", "as a name only (O_PATH)"),
        (
            "m = os.memfd_create('x'); m = os.open(f'/proc/self/fd/{m}', os.O_RDONLY); fcntl.fcntl(m, 1024, 0)",
            "a lease",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(code: str, words: str) -> None:
    with grabbed(code) as (_, found):
        assert any(words in reason.why for reason in descriptors.unsupported(found))


def test_an_image_names_memory_that_it_has() -> None:
    image = Tree()
    image.descriptions.add(flags=os.O_RDWR).memfd.shared = 1
    image.shared.add()
    (reason,) = MemoryDescriptor().validate({0: image.descriptions[0]}, image, (0, 1, 2))
    assert reason.why == "it names shared memory 1: there is none"

"""Shared memory of a tree: all of what has a name, and what is mapped of the rest."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.objects.process.inside import answers
from torpor import procfs
from torpor.objects.memory.shared_memory import SharedMemory
from torpor.objects.paths.file_content import Buffers
from torpor.objects.process import texts
from torpor.procfs import PAGE, Mapping
from torpor.remote.batch import Batch, Replies


def asked(batch: Batch) -> Replies:
    """The answers to calls that are made here."""
    return answers(texts.grab(os.getpid()), batch).replies


@pytest.fixture
def name() -> Iterator[Path]:
    """A name in /dev/shm."""
    path = Path("/dev/shm", f"torpor-test-{os.urandom(6).hex()}")
    yield path
    path.unlink(missing_ok=True)


def mapped(path: Path, pages: int, offset: int = 0) -> tuple[mmap.mmap, Mapping]:
    """A part of a file, mapped."""
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), pages * PAGE, offset=offset * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    (mapping,) = (one for one in procfs.mappings(os.getpid()) if one.start == start)
    return memory, mapping


def content(shared: SharedMemory) -> bytes:
    (segment,) = shared.segments.values()
    found = bytearray(segment.size)
    for at, piece in segment.pieces.items():
        found[at : at + len(piece)] = piece
    return bytes(found)


def test_a_file_with_a_name_is_copied_whole_though_a_part_is_mapped(name: Path) -> None:
    name.write_bytes(b"x" * PAGE + b"y" * PAGE + b"tail")
    memory, mapping = mapped(name, 1, 1)
    shared = SharedMemory(Buffers())
    with memory, no_more_descriptors():
        shared.grab_mapped(os.getpid(), [mapping], asked)
    assert content(shared) == name.read_bytes()


def test_a_file_for_which_there_is_no_descriptor_is_not_cut_in_silence(
    name: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped of it would be all that is kept."""
    name.write_bytes(b"x" * 3 * PAGE)
    memory, mapping = mapped(name, 1)
    real = os.open

    def none_left(path: str | bytes, *more: int) -> int:
        if path == os.fsencode(name):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *more)

    monkeypatch.setattr(os, "open", none_left)
    with memory, pytest.raises(OSError, match="Too many open files"):
        SharedMemory(Buffers()).grab_mapped(os.getpid(), [mapping], asked)


def test_of_a_file_whose_name_is_another_ones_what_is_mapped_is_kept(name: Path) -> None:
    name.write_bytes(b"x" * 2 * PAGE)
    memory, mapping = mapped(name, 1)
    name.unlink()
    name.write_bytes(b"another")
    shared = SharedMemory(Buffers())
    with memory:
        shared.grab_mapped(os.getpid(), [mapping], asked)
    assert content(shared) == b"x" * PAGE


def test_pieces_of_several_mappings_come_together(name: Path) -> None:
    name.write_bytes(bytes(6 * PAGE))
    first, one = mapped(name, 2)
    second, other = mapped(name, 3, 1)
    first[0:1], second[2 * PAGE : 2 * PAGE + 1] = b"a", b"b"
    name.unlink()
    shared = SharedMemory(Buffers())
    with first, second:
        shared.grab_mapped(os.getpid(), [one, other], asked)
    found = content(shared)
    assert (len(found), found[0:1], found[3 * PAGE : 3 * PAGE + 1]) == (4 * PAGE, b"a", b"b")
    assert found.count(0) == len(found) - 2


def test_memory_behind_the_end_of_its_file_is_not_there(name: Path) -> None:
    name.write_bytes(b"x" * PAGE)
    memory, mapping = mapped(name, 1)
    with memory:
        os.truncate(name, 0)
        name.unlink()
        shared = SharedMemory(Buffers())
        shared.grab_mapped(os.getpid(), [mapping], asked)
        assert content(shared) == b""

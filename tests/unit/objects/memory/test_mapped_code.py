"""Words are found in the files that a process executes, and in those that nobody can read."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from torpor.image import image_pb2 as pb
from torpor.objects.memory import mapped_code
from torpor.objects.memory.mapped_code import MappedCode, has_word
from torpor.objects.paths.opener import Openers

READ, EXECUTE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC


def executing(*files: Path, prot: int = EXECUTE) -> pb.Tree:
    """A tree of one process that has mapped files."""
    image = pb.Tree()
    process = image.processes.add(pid=100)
    process.credentials.uids.extend([os.geteuid()] * 4)
    process.credentials.gids.extend([os.getegid()] * 4)
    for number, path in enumerate(files):
        image.files.add(path=bytes(path))
        for part in range(2):
            start = 0x10000 * (2 * number + part + 1)
            process.memory.vmas.add(start=start, end=start + 4096, kind=pb.Vma.FILE_PRIVATE, file=number, prot=prot)
    return image


def found(image: pb.Tree, word: bytes = b"__vdso_getrandom\0") -> list[str]:
    with Openers(image) as openers:
        return MappedCode(image, openers).with_word(image.processes[0], word)


def test_files_are_told_apart_by_their_words(tmp_path: Path) -> None:
    old, new, longer = (tmp_path / name for name in ("old.so", "new.so", "longer.so"))
    old.write_bytes(b"\0__vdso_time\0")
    new.write_bytes(b"\0__vdso_time\0__vdso_getrandom\0")
    longer.write_bytes(b"\0__vdso_getrandom_bytes\0")
    image = executing(old, new, longer)
    assert found(image) == [str(new)]
    assert found(image, b"__vdso_time\0") == [str(old), str(new)]


def test_what_is_only_read_is_not_searched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"\0__vdso_getrandom\0")
    assert found(executing(data, prot=READ)) == []


def test_what_cannot_be_read_may_have_every_word(tmp_path: Path) -> None:
    missing, bundled, fifo = tmp_path / "missing", tmp_path / "bundled", tmp_path / "fifo"
    bundled.write_bytes(b"other words")
    os.mkfifo(fifo)
    image = executing(missing, bundled, fifo)
    image.bundles.add(path=bytes(bundled))  # another one: the image's has another size
    assert found(image) == [str(missing), str(bundled), str(fifo)]


def test_a_bundled_file_that_is_here_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"other words")
    image = executing(path)
    image.bundles.add(path=bytes(path))
    image.files[0].size, image.files[0].mtime_ns = path.stat().st_size, path.stat().st_mtime_ns
    assert found(image) == []
    assert found(image, b"other") == [str(path)]


@pytest.mark.parametrize("before", [0, 1, 99, 100, 101, 108, 109, 110, 111, 1000])
def test_a_word_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setattr(mapped_code, "_AT_ONCE", 110)
    path = tmp_path / "file"
    path.write_bytes(bytes(before) + b"0123456789" + bytes(300))
    with path.open("rb") as file:
        assert has_word(file.fileno(), b"0123456789")
        assert not has_word(file.fileno(), b"01234567890")

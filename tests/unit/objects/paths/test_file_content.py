"""What a file holds, without its holes: found, copied, written to a new file, and compared."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.errors import ImageDamaged
from torpor.image import image_pb2 as pb
from torpor.objects.memory.own_pages import PageWriter
from torpor.objects.paths import file_content
from torpor.objects.paths.file_content import Buffers, Content
from torpor.procfs import PAGE
from torpor.store import Store

MANY = 1 << 20


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def copied(path: Path) -> Content:
    content = Content()
    file_content.copy(os.open(path, os.O_RDONLY), content, Buffers())
    return content


def test_what_does_not_fit_into_memory_is_copied_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * MANY)
    size = 7 * MANY
    for buffers, on_disk in ((Buffers(size, tmp_path), 0), (Buffers(size - 1, tmp_path), size)):
        content = Content()
        file_content.copy(os.open(tmp_path / "file", os.O_RDONLY), content, buffers)
        assert bytes(content.pieces[0]) == b"content" * MANY
        assert buffers.on_disk == on_disk
    buffers = Buffers(size, tmp_path)
    buffers.reserve(size)
    buffers.take(1)
    assert buffers.on_disk == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Buffers(0, tmp_path).take(4096)


def stored(store: Store, content: Content) -> pb.PageTable:
    """The content in a snapshot: the pages by which it is found."""
    table = pb.PageTable()
    with store.writer("tree") as saver:
        with PageWriter(saver, lambda done, expected: None) as out:
            out.store_shared(content, table)
        saver.publish(b"", "")
    return table


def written(store: Store, table: pb.PageTable, size: int) -> bytes:
    """What a new file has that is filled from the newest snapshot."""
    with store.open("latest") as reader, tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), size)
        file_content.fill(file.fileno(), table, size, reader)
        assert os.fstat(file.fileno()).st_size == size
        assert file_content.same(file.fileno(), table, size, reader)
        return os.pread(file.fileno(), size + 1, 0)


def whole(content: Content) -> bytes:
    found = bytearray(content.size)
    for at, piece in content.pieces.items():
        found[at : at + len(piece)] = piece
    return bytes(found)


def test_holes_are_found_and_left_out(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    os.pwrite(fd, b"a" * MANY, MANY)
    os.pwrite(fd, b"b" * 10, 4 * MANY)
    os.ftruncate(fd, 6 * MANY)
    found = list(file_content.data(fd, 0, 6 * MANY))
    assert found[0] == (MANY, 2 * MANY)
    assert found[1][0] == 4 * MANY and found[1][1] < 5 * MANY
    assert list(file_content.data(fd, MANY + 5, MANY + 9)) == [(MANY + 5, MANY + 9)]
    assert list(file_content.data(fd, 2 * MANY, 3 * MANY)) == []
    assert list(file_content.data(fd, 5 * MANY, 6 * MANY)) == []
    os.close(fd)


def test_a_copy_is_what_the_file_had_at_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    content = copied(path)
    path.write_bytes(b"after")
    assert (content.size, whole(content)) == (6, b"before")
    path.write_bytes(b"")
    assert (copied(path).size, copied(path).pieces) == (0, {})


def test_a_file_that_becomes_shorter_while_it_is_copied_has_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE)
    room = Content.room

    def cut(content: Content, runs: Sequence[tuple[int, int]], buffers: Buffers) -> memoryview:
        os.truncate(path, PAGE)
        return room(content, runs, buffers)

    monkeypatch.setattr(Content, "room", cut)
    assert whole(copied(path)) == b"x" * PAGE + bytes(2 * PAGE)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40), st.integers(0, 511)), max_size=8),
    st.integers(0, 3 * PAGE),
)
def test_pieces_come_back_where_they_were(drawn: list[tuple[int, int, int]], behind: int) -> None:
    """Also where data begins and ends within a page, as on file systems with blocks of 512 bytes."""
    content, at = Content(), 0
    for number, (gap, blocks, less) in enumerate(drawn):
        at += (gap + (number > 0)) * 512
        piece = bytes([number + 1]) * (blocks * 512 - less)
        content.pieces[at] = memoryview(piece)
        content.size = at + len(piece)
        at += blocks * 512
    content.size += behind
    with tempfile.TemporaryDirectory(prefix="torpor-test-content-") as folder:
        store = Store(Path(folder) / "store")
        assert written(store, stored(store, content), content.size) == whole(content)


@pytest.fixture
def small_blocks(tmp_path: Path) -> Iterator[Path]:
    """A file system whose blocks are smaller than a page."""
    tools = [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("mkfs.ext4", "mount", "umount")]
    if os.geteuid() or None in tools:
        pytest.skip("needs root and mkfs.ext4")
    make, mount, umount = map(str, tools)
    image, place = tmp_path / "image", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 8 * MANY)
    place.mkdir()
    subprocess.run([make, "-q", "-b", "1024", image], check=True)
    if (done := subprocess.run([mount, "-o", "loop", image, place], check=False, capture_output=True)).returncode:
        pytest.skip(f"no file system can be mounted from a file: {done.stderr.decode().strip()}")
    yield place
    subprocess.run([umount, place], check=True)


def test_data_that_begins_within_a_page(store: Store, small_blocks: Path) -> None:
    path = small_blocks / "file"
    fd = opened(path)
    os.pwrite(fd, b"a" * 1024, 1024)
    os.pwrite(fd, b"b" * 1024, 3 * 1024)
    os.pwrite(fd, b"c" * 1500, 2 * PAGE + 2 * 1024)
    os.ftruncate(fd, 5 * PAGE + 1)
    os.fsync(fd)
    assert next(file_content.data(fd, 0, PAGE))[0] == 1024
    os.close(fd)
    content = copied(path)
    assert whole(content) == path.read_bytes()
    assert written(store, stored(store, content), content.size) == path.read_bytes()


def test_another_content_is_not_the_same(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = opened(path)
    os.pwrite(fd, b"a" * 2 * PAGE, PAGE)
    os.ftruncate(fd, 9 * PAGE + 7)
    size = os.fstat(fd).st_size
    table = stored(store, copied(path))
    with store.open("latest") as reader:
        assert file_content.same(fd, table, size, reader)
        assert not file_content.same(fd, table, size + 1, reader)
        for at in (0, PAGE, 3 * PAGE - 1, 3 * PAGE, size - 1):
            was = os.pread(fd, 1, at)
            os.pwrite(fd, b"z", at)
            assert not file_content.same(fd, table, size, reader), at
            os.pwrite(fd, was, at)
        assert file_content.same(fd, table, size, reader)
        os.pwrite(fd, bytes(PAGE), 5 * PAGE)
        assert file_content.same(fd, table, size, reader), "zeros and a hole are the same content"
    os.close(fd)


@pytest.mark.parametrize("start", [9, 1 << 40])
def test_a_page_behind_the_end_or_a_block_that_is_too_short_is_refused(
    store: Store, tmp_path: Path, start: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    table = stored(store, copied(path))
    with store.open("latest") as reader, open(path, "r+b") as file:
        for damaged in (
            pb.PageTable(starts=[start], counts=[1], blocks=table.blocks),
            pb.PageTable(starts=[0], counts=[2], blocks=table.blocks),
            pb.PageTable(starts=[0], counts=[1], blocks=table.blocks, skips=[1]),
            pb.PageTable(starts=[0], counts=[1], blocks=[7]),
        ):
            with pytest.raises(ImageDamaged):
                file_content.fill(file.fileno(), damaged, 9 * PAGE, reader)

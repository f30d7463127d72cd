"""The content of files at a checkpoint, so that a restore can tell a file that only grew from one that was changed.

A file with the same size and times (of its content and of its inode) is the same. Otherwise its content is compared: by
a hash of all of it if it is small, or, if the program writes anywhere in it, up to `WHOLE_IN_PLACE`; for larger files
by a hash of the start, of samples, and of the end.

The hash is computed when the tree runs again. A file that was changed meanwhile, other than by growing, has no hash:
its content at the freeze is unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from enum import Enum
from typing import TypeAlias

from blake3 import blake3

from torpor.image import image_pb2 as pb
from torpor.objects.paths.same_file import Key, key_of, open_same

WHOLE = 256 << 10
"""The largest file that is hashed completely, in bytes."""
WHOLE_IN_PLACE = 64 << 20
"""The same for a file that the program may write anywhere, since samples would not show that."""
WHOLE_MAPPED = 1 << 30
"""The same for a file that is mapped for writing: its times do not show all writes."""
_EDGE, _SAMPLE, _SAMPLES = 64 << 10, 4 << 10, 16
_PIECE = 1 << 20
_SETTLED_NS = 2_000_000_000
"""How old a change must be, so that the next one gets another time on every file system."""
_MOST_KNOWN = 4096

File: TypeAlias = "pb.RegularFile | pb.FileRef"
_known: dict[tuple[int, ...], bytes] = {}
"""Hashes of files by their inode, size and times: in a series of checkpoints most files do not change."""


class Change(Enum):
    """What happened to a file."""

    NONE = ""
    GROWN = "it grew"
    CUT = "it was cut"
    CHANGED = "its content was changed"
    UNKNOWN = "whether it was changed cannot be told"


def note_stat(file: File, was: os.stat_result) -> None:
    """Write the identity of an unchanged file to the image."""
    file.size, file.mtime_ns, file.ctime_ns = was.st_size, was.st_mtime_ns, was.st_ctime_ns
    file.dev, file.ino, file.mode = was.st_dev, was.st_ino, was.st_mode


def note(file: File, was: os.stat_result, *, in_place: bool, whole: int | None = None, times_tell: bool = True) -> None:
    """Write the hash of a file's content to the image, if the file has not changed since `was`.

    Args:
        file: its message, with its path.
        was: its status at the freeze.
        in_place: whether the program writes anywhere in it, not only at its end.
        whole: the largest size to hash completely; None: as `in_place` says.
        times_tell: whether a file with the same times has the same content.
    """
    if whole is None:
        whole = WHOLE_IN_PLACE if in_place else WHOLE
    try:
        fd = open_same(file.path, key_of(was))
    except OSError:
        return  # not readable, gone, or replaced: at a restore it must be unchanged
    try:
        found = (_digest_known if times_tell else _digest)(fd, was, was.st_size <= whole)
        now = os.fstat(fd)
    except OSError:
        return
    finally:
        os.close(fd)
    grown = not in_place and os.path.samestat(was, now) and now.st_size > was.st_size
    if grown or _times(was) == _times(now):
        file.content.digest, file.content.whole = found, was.st_size <= whole


def note_mapped(image: pb.Tree, unwritten: Callable[[], Set[Key]] | None) -> None:
    """Write the hashes of the files that are mapped for writing, unless the image has their content.

    A write to a page that is still to be written to disk does not change the file's times. So of a file that is too
    large for a hash nobody can tell later whether a tree that runs on has changed it: it has an empty one. So has a
    file that the tree may have written between the freeze and the hash.

    Args:
        image: the tree.
        unwritten: tells which files the tree has not written by a mapping since the freeze; None: it stands still.
    """
    hashed: list[File] = []
    mapped = mapped_to_write(image)
    files: list[File] = [one.file for one in image.descriptions if one.WhichOneof("kind") == "file"]
    files += image.files
    for file in files:
        if (file.dev, file.ino) not in mapped or file.content.digest:
            continue
        if unwritten and file.size > WHOLE_MAPPED:
            file.content.whole = True
            continue
        with suppress(OSError):  # it is gone: at a restore it must be unchanged
            was = os.stat(file.path)
            if _times(was) == (file.dev, file.ino, file.size, file.mtime_ns, file.ctime_ns):
                note(file, was, in_place=True, whole=WHOLE_MAPPED, times_tell=False)
                hashed.append(file)
    still = unwritten() if unwritten and hashed else ()
    for file in hashed if unwritten else ():
        if (file.dev, file.ino) not in still and file.content.digest:
            file.content.digest, file.content.whole = b"", True


def change(file: File, fd: int, *, in_place: bool) -> Change:
    """What happened to a file since `note`.

    Args:
        file: of the image.
        fd: a descriptor of it, with any access mode; its position stays.
        in_place: as for `note`.
    """
    now = os.fstat(fd)
    grown = Change.GROWN if now.st_size > file.size else Change.NONE
    same = _times(now) == (file.dev, file.ino, file.size, file.mtime_ns, file.ctime_ns)
    if file.content.whole and not file.content.digest:
        return Change.UNKNOWN
    # Writes through a mapping change the file's time later, or never (tmpfs): compare all that is known.
    if same and not (in_place and file.content.whole):
        return Change.NONE
    if now.st_size < file.size:
        return Change.CUT
    if not file.ctime_ns:
        return grown  # a file of the kernel, or an image without times
    alike = (now.st_size, now.st_mtime_ns) == (file.size, file.mtime_ns)
    if not file.content.digest:
        return Change.NONE if alike else Change.CHANGED
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Change.CHANGED
    try:
        if digest(reader, file.size, whole=file.content.whole) != file.content.digest:
            return Change.CHANGED
    finally:
        os.close(reader)
    known = file.content.whole or alike or (grown is Change.GROWN and not in_place)
    return grown if known else Change.CHANGED


def digest(fd: int, size: int, *, whole: bool) -> bytes:
    """BLAKE3 of the first `size` bytes of an open file, or of parts of them. A shorter file has another hash."""
    sum_ = blake3()
    for start, end in [(0, size)] if whole else _parts(size):
        for at in range(start, end, _PIECE):
            sum_.update(os.pread(fd, min(_PIECE, end - at), at))
    return sum_.digest()


def _parts(size: int) -> Iterator[tuple[int, int]]:
    yield 0, min(_EDGE, size)
    for number in range(1, _SAMPLES):
        at = size * number // _SAMPLES
        yield at, min(at + _SAMPLE, size)
    yield max(size - _EDGE, 0), size


def _times(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(fd: int, was: os.stat_result, whole: bool) -> bytes:
    return digest(fd, was.st_size, whole=whole)


def _digest_known(fd: int, was: os.stat_result, whole: bool) -> bytes:
    key = (*_times(was), int(whole))
    if (found := _known.get(key)) is not None and _times(os.fstat(fd)) == _times(was):
        return found
    found = _digest(fd, was, whole)
    settled = max(was.st_mtime_ns, was.st_ctime_ns) < time.time_ns() - _SETTLED_NS
    if settled and _times(os.fstat(fd)) == _times(was):
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found


def writes(flags: int) -> bool:
    """Whether a description may write."""
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_RDONLY


def may_write_anywhere(flags: int) -> bool:
    """Whether a description may write, and not only at the end of the file, wherever its position is (pwrite(2))."""
    return writes(flags) and not flags & os.O_APPEND


def writes_anywhere(flags: int, position: int, size: int) -> bool:
    """Whether a description may write, and, by its position, not only at the end of the file."""
    return may_write_anywhere(flags) and position < size


def written(image: pb.Tree) -> Iterator[tuple[bytes, File]]:
    """The files that an image's programs may write, by their paths; a path may come several times."""
    yield from ((file.path, file) for file in files_mapped_to_write(image))
    for one in image.descriptions:
        if one.WhichOneof("kind") == "file" and writes(one.flags):
            yield one.file.path, one.file


def in_place(image: pb.Tree) -> set[tuple[int, int]]:
    """Device and inode of the files of an image that its programs write anywhere."""
    return mapped_to_write(image) | {
        (one.file.dev, one.file.ino)
        for one in image.descriptions
        if one.WhichOneof("kind") == "file" and writes_anywhere(one.flags, one.file.position, one.file.size)
    }


def files_mapped_to_write(image: pb.Tree) -> list[pb.FileRef]:
    """The files that are mapped so that writes reach them, by all their names."""
    mapped = mapped_to_write(image)
    return [file for file in image.files if (file.dev, file.ino) in mapped]


def mapped_shared(image: pb.Tree) -> set[int]:
    """The files that are mapped shared, by their indexes."""
    mappings = (vma for process in image.processes for vma in process.memory.vmas)
    return {vma.file for vma in mappings if vma.kind == pb.Vma.FILE_SHARED}


def mapped_to_write(image: pb.Tree) -> set[tuple[int, int]]:
    """Device and inode of the files that are mapped so that writes reach them."""
    mappings = (vma for process in image.processes for vma in process.memory.vmas)
    found = {vma.file for vma in mappings if vma.kind == pb.Vma.FILE_SHARED and vma.may_write}
    return {(file.dev, file.ino) for index, file in enumerate(image.files) if index in found}

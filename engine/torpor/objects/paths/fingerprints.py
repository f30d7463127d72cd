"""What a file held at a save: so that at a restore one that only grew can be told from one that was changed.

A file whose size and times (of its content and of its inode) are as they were is the same. Else its content is
compared: by the hash of all that it held where it is small, or where the program writes anywhere in it, up to
`WHOLE_IN_PLACE`; of larger ones by that of the beginning, of samples, and of the end.

The hash is made when the tree runs again. What was changed meanwhile, and did not only grow, has none: it is not known
what it held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from enum import Enum
from typing import TypeAlias

from blake3 import blake3

from torpor.image import image_pb2 as pb

WHOLE = 256 << 10
"""Bytes up to which all of a file is hashed."""
WHOLE_IN_PLACE = 64 << 20
"""The same for one that the program writes anywhere: samples would not show that."""
_EDGE, _SAMPLE, _SAMPLES = 64 << 10, 4 << 10, 16
_PIECE = 1 << 20
_SETTLED_NS = 2_000_000_000
"""How old a change must be, so that another one has another time on every file system."""
_MOST_KNOWN = 4096

File: TypeAlias = "pb.RegularFile | pb.FileRef"
_known: dict[tuple[int, ...], bytes] = {}
"""Hashes of files by their inode, size and times: in a series of saves most files are as they were."""


class Change(Enum):
    """What became of a file."""

    NONE = ""
    GROWN = "it grew"
    CUT = "it was cut"
    CHANGED = "its content was changed"


def note_stat(file: File, was: os.stat_result) -> None:
    """Put into the image by what a file is known that is as it was."""
    file.size, file.mtime_ns, file.ctime_ns = was.st_size, was.st_mtime_ns, was.st_ctime_ns
    file.dev, file.ino, file.mode = was.st_dev, was.st_ino, was.st_mode


def note(file: File, was: os.stat_result, *, in_place: bool) -> None:
    """Put into the image what a file holds, if it is known to hold that since a moment ago.

    Args:
        file: its message, with its path.
        was: of that moment.
        in_place: whether the program writes anywhere in it, and not only at its end.
    """
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return  # not readable, or gone: at a restore it must be as it was
    try:
        whole = was.st_size <= (WHOLE_IN_PLACE if in_place else WHOLE)
        found = _digest_known(fd, was, whole)
        now = os.fstat(fd)
    except OSError:
        return
    finally:
        os.close(fd)
    grown = not in_place and os.path.samestat(was, now) and now.st_size > was.st_size
    if grown or _times(was) == _times(now):
        file.content.digest, file.content.whole = found, whole


def change(file: File, fd: int, *, in_place: bool) -> Change:
    """What became of a file since it was noted.

    Args:
        file: of the image.
        fd: a descriptor of it, opened in any way; its position stays.
        in_place: as for `note`.
    """
    now = os.fstat(fd)
    grown = Change.GROWN if now.st_size > file.size else Change.NONE
    same = _times(now) == (file.dev, file.ino, file.size, file.mtime_ns, file.ctime_ns)
    # What is written through a mapping gives the file another time later, or never (tmpfs): all that is known counts.
    if same and not (in_place and file.content.whole):
        return Change.NONE
    if now.st_size < file.size:
        return Change.CUT
    if not file.ctime_ns:
        return grown  # a file of the kernel, or an image that does not say more
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
    """BLAKE3 of the first `size` bytes of an open file, or of parts of them. One that is shorter has another."""
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


def _digest_known(fd: int, was: os.stat_result, whole: bool) -> bytes:
    key = (*_times(was), int(whole))
    if (found := _known.get(key)) is not None and _times(os.fstat(fd)) == _times(was):
        return found
    found = digest(fd, was.st_size, whole=whole)
    settled = max(was.st_mtime_ns, was.st_ctime_ns) < time.time_ns() - _SETTLED_NS
    if settled and _times(os.fstat(fd)) == _times(was):
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found


def writes_anywhere(flags: int, position: int, size: int) -> bool:
    """Whether a description, by its flags and position, is there to write, and not only at the end of the file."""
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND:
        return False
    return position < size


def in_place(image: pb.Tree) -> set[tuple[int, int]]:
    """Device and inode of the files of an image that its programs write anywhere."""
    return mapped_to_write(image) | {
        (one.file.dev, one.file.ino)
        for one in image.descriptions
        if one.WhichOneof("kind") == "file" and writes_anywhere(one.flags, one.file.position, one.file.size)
    }


def mapped_to_write(image: pb.Tree) -> set[tuple[int, int]]:
    """Device and inode of the files that are mapped so that what is written there reaches them."""
    mappings = (vma for process in image.processes for vma in process.memory.vmas)
    found = {vma.file for vma in mappings if vma.kind == pb.Vma.FILE_SHARED and vma.may_write}
    return {(file.dev, file.ino) for index, file in enumerate(image.files) if index in found}

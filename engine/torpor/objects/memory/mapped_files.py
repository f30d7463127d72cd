"""Files that are mapped or executed: the image refers to them, and a restore checks that they are the same.

The same means: of the same size, and with the same GNU build id, or if a file has none, the same modification time.
patchelf and strip change a file, but not its build id.

Documented in: elf(5) on notes; the build id is an NT_GNU_BUILD_ID note with the name "GNU".
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeAlias

from torpor.errors import CheckpointFailed, Reason, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.paths import bundle, fingerprints, own_places
from torpor.objects.paths.file_names import DELETED, as_gone, is_silly
from torpor.objects.paths.fingerprints import Change
from torpor.objects.paths.opener import Opener, Openers
from torpor.objects.paths.same_file import device_of, key_of, open_mapped, open_same
from torpor.procfs import Mapping
from torpor.store import SnapshotReader

_ELF = b"\x7fELF\x02\x01"  # 64-bit, little endian
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_MAX_NOTES = 1 << 16
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def build_id(fd: int) -> bytes:
    """The GNU build id of an open ELF file; empty if it has none or is not an ELF file."""
    head = os.pread(fd, 64, 0)
    if not head.startswith(_ELF) or len(head) < 64:
        return b""
    (table,) = struct.unpack_from("<Q", head, 32)
    entry_size, count = struct.unpack_from("<HH", head, 54)
    if entry_size != _PROGRAM_HEADER.size:
        return b""
    end = os.fstat(fd).st_size
    if table > end:
        return b""
    headers = os.pread(fd, entry_size * count, table)
    for position in range(0, len(headers) - entry_size + 1, entry_size):
        kind, _, offset, _, _, size, _, align = _PROGRAM_HEADER.unpack_from(headers, position)
        if kind == _PT_NOTE and size <= _MAX_NOTES and offset <= end:
            found = _find_note(os.pread(fd, size, offset), 8 if align == 8 else 4)
            if found:
                return found
    return b""


def _find_note(notes: bytes, align: int) -> bytes:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = position + 12
        start = name + _up(name_size, align)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[start : start + size]
        position = start + _up(size, align)
    return b""


def _up(value: int, align: int) -> int:
    return (value + align - 1) & -align


_LEADS_ELSEWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""Errors of open(2) for a path that no longer leads to the file: it is gone, or a directory of the path is a file now
(ENOTDIR), or a socket is in its place (ENXIO), or symbolic links stand in the way (ELOOP).
"""


class _Known(NamedTuple):
    path: bytes
    device: int
    inode: int


class MappedFiles:
    """The files of a tree, each once, with its index in the image."""

    def __init__(self, image: pb.Tree, in_memory: dict[bytes, pb.FileRef] | None = None) -> None:
        """`in_memory`: files that a restore has made in memory, by their names in maps."""
        self._image = image
        self._in_memory = in_memory or {}
        self._indexes: dict[_Known, int] = {}
        self.gone: dict[bytes, int] = {}
        """Descriptors of programs whose files have no name any more, by their paths in the image."""

    def index(self, mapping: Mapping) -> int | None:
        """The index of a mapped file in Tree.files; None if its path now leads to another file or to none."""
        key = _Known(mapping.name, device_of(mapping), mapping.inode)
        if (file := self._in_memory.get(mapping.name)) and key not in self._indexes:
            self._indexes[key] = len(self._image.files)
            self._image.files.append(file)
        return self._index(key, partial(open_mapped, mapping))

    def program(self, pid: int) -> int:
        """The index of a process's program. A program whose file is gone will be bundled.

        Raises:
            CheckpointFailed: it cannot be read.
        """
        link = f"/proc/{pid}/exe"
        path, file = os.fsencode(os.readlink(link)), key_of(os.stat(link))
        known = _Known(path, *file)
        if is_silly(path):
            path = as_gone(path)
        found = self._index(known, partial(open_same, path, file))
        if found is not None:
            return found
        while path in self.gone:  # another program that is gone had this name
            path += DELETED.encode()
        self.gone[path] = fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        self._indexes[known] = found = self._put(path, fd)
        return found

    def close(self) -> None:
        """Close the programs whose files are gone."""
        while self.gone:
            os.close(self.gone.popitem()[1])

    def _index(self, known: _Known, opened: Callable[[], int]) -> int | None:
        if known not in self._indexes:
            found = self._add(known.path, opened)
            if found is None:
                return None
            self._indexes[known] = found
        return self._indexes[known]

    def _add(self, path: bytes, opened: Callable[[], int]) -> int | None:
        try:
            fd = opened()
        except PermissionError:
            raise CheckpointFailed(
                f"the mapped file {os.fsdecode(path)} cannot be read by you, so a restore could not check it"
            ) from None
        except OSError as error:
            if error.errno in _LEADS_ELSEWHERE:
                return None
            raise CheckpointFailed(f"the mapped file {os.fsdecode(path)} cannot be read: {error.strerror}") from error
        try:
            known = _Known(path, *key_of(os.fstat(fd)))  # maps may show another device
            if known not in self._indexes:
                self._indexes[known] = self._put(path, fd)
            return self._indexes[known]
        finally:
            os.close(fd)

    def _put(self, path: bytes, fd: int) -> int:
        status = os.fstat(fd)
        fingerprints.note_stat(self._image.files.add(path=path, build_id=build_id(fd)), status)
        return len(self._image.files) - 1


# Restore


_ALONG = "or save it with --bundle-files: then the image has its programs and libraries"


def validate(image: pb.Tree, openers: Openers) -> Iterator[Reason]:
    """Say which mapped or executed files are not what they were. A file that is mapped shared may have changed."""
    data = fingerprints.mapped_shared(image)
    written = fingerprints.mapped_to_write(image)
    bundles = bundle.by_path(image)
    for index, file in enumerate(image.files):
        subject = f"the mapped file {os.fsdecode(file.path)}"
        if file.path in bundles and (index not in data or not os.path.lexists(file.path)):
            if index in data and (why := own_places.why_not_make(image, file.path, openers.file(index))):
                yield Reason(subject, f"it is missing, and the bundled one cannot be put back: {why}")
            continue
        try:
            fd = _open(file, os.O_RDONLY, openers.file(index))
        except OSError as error:
            yield Reason(subject, f"it cannot be opened: {error.strerror}", f"put it back where it was, {_ALONG}")
            continue
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                yield Reason(subject, "it is no regular file any more", "put it back")
            elif index in data:
                yield from _validate_size(subject, image, index, status.st_size)
                became = (
                    fingerprints.change(file, fd, in_place=True) if (file.dev, file.ino) in written else Change.NONE
                )
                if became in (Change.CHANGED, Change.UNKNOWN):
                    why = "it was changed since the checkpoint: its content is not the same"
                    if became is Change.UNKNOWN:
                        why = "it is too large for a hash, or was written before it had one: a change cannot be told"
                    yield Reason(subject, why, "put the old file back", changed=os.fsdecode(file.path))
            elif file.build_id and (build_id(fd), status.st_size) != (file.build_id, file.size):
                why = "it is another build than the one in memory"
                if build_id(fd) == file.build_id:
                    why = f"it has the same build id, but {status.st_size} bytes, not {file.size}: it was changed since"
                yield Reason(subject, why, f"install that version again, {_ALONG}")
            elif not file.build_id and (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                needed = max((vma.offset + vma.end - vma.start for vma in _of(image, index)), default=0)
                usable = status.st_size >= min(needed, file.size)  # else there would be pages without a file
                why = "its size or modification time has changed"
                path = os.fsdecode(file.path) if usable else ""
                yield Reason(subject, why, "put the old file back", changed=path)
        except OSError as error:  # a file of the kernel
            yield Reason(subject, f"it cannot be read: {error.strerror}", "put the file back")
        finally:
            os.close(fd)


def _of(image: pb.Tree, index: int) -> Iterator[pb.Vma]:
    """The mappings of a file."""
    kinds = (pb.Vma.FILE_PRIVATE, pb.Vma.FILE_SHARED)
    found = (vma for process in image.processes for vma in process.memory.vmas)
    return (vma for vma in found if vma.kind in kinds and vma.file == index)


def _validate_size(subject: str, image: pb.Tree, index: int, size: int) -> Iterator[Reason]:
    mapped = [vma for process in image.processes for vma in process.memory.vmas if vma.file == index]
    needed = max(vma.offset + vma.end - vma.start for vma in mapped if vma.kind == pb.Vma.FILE_SHARED)
    if size < image.files[index].size and size < needed:
        yield Reason(subject, f"it has {size} bytes, and {image.files[index].size} were mapped", "put it back")


def open_all(image: pb.Tree, reader: SnapshotReader, base: int, openers: Openers) -> dict[int, int]:
    """Open every file, also for writing if a shared mapping may write.

    A bundled file that is missing or has changed is opened as a file in memory.

    Args:
        image: the tree, checked.
        reader: of its snapshot.
        base: the lowest number for a descriptor.
        openers: open the files.

    Returns:
        Close-on-exec descriptors, by index in the image.

    Raises:
        RestoreFailed: a file cannot be opened; none is left open.
    """
    writers = {
        vma.file
        for process in image.processes
        for vma in process.memory.vmas
        if vma.kind == pb.Vma.FILE_SHARED and vma.may_write
    }
    shared = fingerprints.mapped_shared(image)
    bundles = bundle.by_path(image)
    opened: dict[int, int] = {}
    try:
        for index, file in enumerate(image.files):
            bundled = None if index in shared else bundles.get(file.path)
            opener = openers.file(index)
            if bundled is not None and not is_there(file, opener):
                fd = bundle.in_memory(bundled, reader)
            else:
                fd = _open(file, os.O_RDWR if index in writers else os.O_RDONLY, opener)
            try:
                opened[index] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base)
            finally:
                os.close(fd)
    except BaseException as error:
        for fd in opened.values():
            os.close(fd)
        if not isinstance(error, OSError):
            raise
        path = os.fsdecode(file.path)  # the one that was at hand
        raise RestoreFailed(f"the mapped file {path} cannot be opened: {error.strerror}") from error
    return opened


Mapped: TypeAlias = tuple[int, int]
"""A kind of mapping, and the index of the file or the shared memory."""


def mapped_both_ways(image: pb.Tree) -> set[Mapped]:
    """Files and shared memory that are opened for writing, but that some processes mapped by a read-only descriptor.

    Nobody may make such a mapping writable (mm/mmap.c: no VM_MAYWRITE).
    """
    apart = {index for index, one in enumerate(image.shared) if one.kind == pb.SharedMemory.SYSTEM_V}  # not by mmap(2)
    may_write: dict[bool, set[Mapped]] = {True: set(), False: set()}
    for vma in (vma for process in image.processes for vma in process.memory.vmas):
        if vma.kind == pb.Vma.FILE_SHARED:
            may_write[vma.may_write].add((vma.kind, vma.file))
        elif vma.kind == pb.Vma.SHARED and vma.shared not in apart:
            may_write[True].add((vma.kind, vma.shared))  # it is opened so
            may_write[vma.may_write].add((vma.kind, vma.shared))
    return may_write[True] & may_write[False]


def open_for_reading(image: pb.Tree, opened: dict[int, dict[int, int]], base: int) -> dict[Mapped, int]:
    """Open again, read-only, what is mapped both ways.

    What its owner may not read any more is left out.

    Args:
        image: the tree.
        opened: for each kind of mapping, the writable descriptors by index.
        base: the lowest number for a descriptor.

    Raises:
        RestoreFailed: it cannot be opened; none is left open.
    """
    found: dict[Mapped, int] = {}
    try:
        for kind, index in sorted(mapped_both_ways(image)):
            with suppress(PermissionError):
                fd = os.open(f"/proc/self/fd/{opened[kind][index]}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    found[kind, index] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base)
                finally:
                    os.close(fd)
    except OSError as error:
        for fd in found.values():
            os.close(fd)
        raise RestoreFailed(f"a mapped file or memory cannot be opened read-only: {error.strerror}") from error
    return found


def is_there(file: pb.FileRef, opener: Opener) -> bool:
    """Whether the file with this name is that of the image."""
    try:
        fd = _open(file, os.O_RDONLY, opener)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
            return False
        return build_id(fd) == file.build_id if file.build_id else status.st_mtime_ns == file.mtime_ns
    finally:
        os.close(fd)


def _open(file: pb.FileRef, flags: int, opener: Opener) -> int:
    # O_NONBLOCK: the name may now belong to a FIFO.
    return opener.open(file.path, flags | os.O_NONBLOCK | os.O_NOCTTY, known=(file.dev, file.ino))

"""Files whose content is in the image: for a host that lacks them (`torpor checkpoint --bundle-files`).

Bundled are the files that are mapped, executed or open, but for those of /dev/shm (which are in every image), of the
kernel (/proc, /sys), and names without content (O_PATH). A program whose own file is gone is bundled always: nothing
else has it.

They are read when the tree runs again, if it is to run on; one that changes meanwhile is refused. Opening a file would
break another's lease for writing, so one that the tree has such a lease on is refused too.

At a restore a file that is there and as it was is used, not the bundled one. Programs, libraries and data that are
mapped privately come back in memory (memfd_create(2)): nothing has their names, but what is mapped is. What is open, or
mapped so that writes reach the file, is put back under its name if nothing is there: with its mode and time, never over
another file, and its directory must be there. If the restore fails it is removed again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torpor.errors import Reason, Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.description import OF_A_PROCESS
from torpor.objects.shared_memory import LONGEST_NAME, fill
from torpor.store import SnapshotReader

if TYPE_CHECKING:  # memory.py, too, has to do with mapped files, which may be bundled
    from torpor.objects.memory import PageWriter

_SHM = b"/dev/shm/"


# ------------------------------------------------------------------------------------------ from a live tree


def store(image: pb.Tree, gone: dict[bytes, int], out: PageWriter, *, everything: bool) -> None:
    """Put files into the image.

    Args:
        image: described.
        gone: descriptors of programs whose files are gone, by their names in the image.
        out: where their pages go.
        everything: not just those.

    Raises:
        Refused: a file cannot be read, or changed since the freeze.
    """
    for file in image.files:
        if file.path in gone:
            _store(file.path, gone[file.path], file.mode, file.mtime_ns, image, out)
    if not everything:
        return
    reasons = []
    leased = _leased(image)
    known = {bundled.path for bundled in image.bundles}
    for path, (size, mtime_ns, mode) in _wanted(image).items():
        if path in known:
            continue
        subject = f"the file {os.fsdecode(path)}"
        if path in leased:
            reasons.append(Reason(subject, "the program has a lease for writing on it (F_SETLEASE)", "give it up"))
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            reasons.append(
                Reason(subject, f"it cannot be read, to be bundled: {error.strerror}", "let this user read it")
            )
            continue
        try:
            before = os.fstat(fd)
            _store(path, fd, mode, mtime_ns, image, out)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        if {(status.st_size, status.st_mtime_ns) for status in (before, after)} != {(size, mtime_ns)}:
            why = "it changed while the tree was saved, and would be bundled as it is not"
            reasons.append(Reason(subject, why, "save it with --then stop or --then kill, or without it", passing=True))
    if reasons:
        raise Refused("the tree's files cannot be bundled", reasons)


def _wanted(image: pb.Tree) -> dict[bytes, tuple[int, int, int]]:
    """Size, time and mode of every file that is to be bundled, by its path."""
    found = {file.path: (file.size, file.mtime_ns, file.mode) for file in image.files}
    for description in image.descriptions:
        file = description.file
        of_kernel = OF_A_PROCESS.match(file.path) or (file.size and not file.blocks)
        if description.WhichOneof("kind") == "file" and not of_kernel and not description.flags & os.O_PATH:
            found[file.path] = (file.size, file.mtime_ns, file.mode)
    return {path: what for path, what in found.items() if not path.startswith(_SHM)}


def _leased(image: pb.Tree) -> set[bytes]:
    entries = (entry for process in image.processes for entry in process.fds)
    held = {
        entry.description
        for entry in entries
        if any(lock.kind == pb.Lock.LEASE and lock.exclusive for lock in entry.locks)
    }
    return {image.descriptions[index].file.path for index in held}


def _store(path: bytes, fd: int, mode: int, mtime_ns: int, image: pb.Tree, out: PageWriter) -> None:
    bundled = image.bundles.add(path=path, size=os.fstat(fd).st_size, mode=stat.S_IMODE(mode), mtime_ns=mtime_ns)
    out.store_file(fd, bundled.size, bundled.pages)


# -------------------------------------------------------------------------------------------- from an image


def by_path(image: pb.Tree) -> dict[bytes, pb.Bundle]:
    """The bundled files of an image."""
    return {bundled.path: bundled for bundled in image.bundles}


def why_not_put_back(path: bytes) -> str:
    """Why a file cannot be put back under its name; empty: it can."""
    directory = os.path.dirname(path)
    if os.path.lexists(path):
        return "something else has its name"
    if not os.path.isdir(directory):
        return f"there is no directory {os.fsdecode(directory)} to put it into"
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return f"this user may not write in {os.fsdecode(directory)}"
    return ""


def put_back(image: pb.Tree, reader: SnapshotReader) -> list[bytes]:
    """Put back, under their names, the bundled files that must have one and that are not there.

    Returns:
        Their names.

    Raises:
        RestoreFailed: one cannot be made; none is left.
        ImageDamaged: the content is not there.
    """
    bundles = by_path(image)
    made: list[bytes] = []
    try:
        for path in sorted(_named(image)):
            if path in bundles and not os.path.lexists(path):
                _put_back(bundles[path], reader, made)
    except BaseException as error:
        remove(made)
        if isinstance(error, OSError):
            raise RestoreFailed(f"a bundled file cannot be put back: {error}") from error
        raise
    return made


def remove(made: list[bytes]) -> None:
    """Remove what was put back, after a failure."""
    while made:
        os.unlink(made.pop())


def _named(image: pb.Tree) -> Iterator[bytes]:
    """The paths of files that programs have open, or mapped so that what they write is in the file."""
    for description in image.descriptions:
        if description.WhichOneof("kind") == "file":
            yield description.file.path
    mappings = (vma for process in image.processes for vma in process.memory.vmas)
    for index in {vma.file for vma in mappings if vma.kind == pb.Vma.FILE_SHARED}:
        yield image.files[index].path


def _put_back(bundled: pb.Bundle, reader: SnapshotReader, made: list[bytes]) -> None:
    if OF_A_PROCESS.match(bundled.path) or not bundled.path.startswith(b"/"):
        raise RestoreFailed(f"no file is called {bundled.path!r}")
    fd = os.open(bundled.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    made.append(bundled.path)
    try:
        os.ftruncate(fd, bundled.size)
        fill(fd, bundled.pages, bundled.size, reader)
        os.fchmod(fd, bundled.mode & 0o777)
        os.utime(fd, ns=(bundled.mtime_ns, bundled.mtime_ns))
    finally:
        os.close(fd)


def in_memory(bundled: pb.Bundle, reader: SnapshotReader) -> int:
    """A descriptor, for reading, of a bundled file in memory.

    Raises:
        OSError: there is no room.
        ImageDamaged: the content is not there.
    """
    name = os.path.basename(bundled.path).removesuffix(b" (deleted)").removeprefix(b"memfd:")
    fd = os.memfd_create(os.fsdecode(name[:LONGEST_NAME]), os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, bundled.size)
        fill(fd, bundled.pages, bundled.size, reader)
        os.fchmod(fd, bundled.mode & 0o777)
        # The kernel takes no program that is open for writing (ETXTBSY).
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)

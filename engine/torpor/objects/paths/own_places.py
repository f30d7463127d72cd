"""Directories and named pipes that the job itself has made: a restore makes them again where they are missing.

Examples are the scratch directory in which a program stands, the directory of its sockets, a pipe between its parts.
A job that runs on after a checkpoint removes them at its end: without them an earlier snapshot could not be woken.

The image has the directories and named pipes that the tree has open, stands in or watches, and those in which its
sockets have their names, if they belong to the user whose job it is, and were made since the job began. Where the file
system does not tell that (statx(2), STATX_BTIME), their last change counts. With them and with bundled files come the
directories above, as long as the same user owns them.

A restore makes a missing one with its mode and time, with the rights of the processes that need it, and never in place
of something else. If it fails, it removes all of that again. A directory that had more in it than the image has is not
made: the job would go on without files that it may read later, and perhaps they only lie elsewhere by now.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import ImageDamaged
from torpor.image import image_pb2 as pb
from torpor.objects.paths import file_attributes, fingerprints
from torpor.objects.paths.file_names import OF_KERNEL
from torpor.objects.paths.opener import Opener, Openers, paths_of, socket_path
from torpor.objects.paths.small_files import SmallFiles
from torpor.remote.sys import syscall

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME = -100, 0x100, 0x800
_BIRTH = struct.Struct("=I76xqI")
"""Of struct statx: which members are set, and the time when it was made."""
_STATX_SIZE = 256
_OF_ALL = 0o1777
"""The bits of a mode that anybody's file may have."""


@dataclass
class Made:
    """What a restore has made under names that were free."""

    undo: list[Callable[[], None]] = field(default_factory=list)
    """Functions that remove it again, the oldest first."""
    late: list[Callable[[], None]] = field(default_factory=list)
    """Functions to call when everything is made."""
    notices: list[str] = field(default_factory=list)
    """For the user."""

    def settle(self) -> None:
        """Finish what all else must have been made for. Raises OSError."""
        while self.late:
            self.late.pop()()

    def remove(self) -> None:
        """Remove everything, after a failure."""
        while self.undo:
            with suppress(FileNotFoundError):  # another process removed it
                self.undo.pop()()


# ------------------------------------------------------------------------------------------ from a live tree


def note(image: pb.Tree, small: SmallFiles | None) -> None:
    """Write the places of a described tree to the image.

    Args:
        image: the tree, with its bundled files.
        small: the small files of the same job; None: it needs no places but those of its bundled files.
    """
    paths = set(_paths(image))
    used: dict[bytes, os.stat_result] = {}
    for path in paths:
        with suppress(OSError):  # it is gone already
            status = os.lstat(path)
            if small and _is_own(path, status, small):
                used[path] = status
    folders = {path: status for path, status in used.items() if stat.S_ISDIR(status.st_mode)}
    fifos = {path: status for path, status in used.items() if stat.S_ISFIFO(status.st_mode)}
    above = [(path, status.st_uid) for path, status in used.items()]
    above += ((bundled.path, bundled.uid) for bundled in image.bundles if bundled.path in paths)
    for path, owner in above:
        _add_parents(path, owner, folders)
    for path in sorted(folders, key=len):
        image.folders.append(_place(path, folders[path], used=path in used))
    for path in sorted(fifos):
        image.fifos.append(_place(path, fifos[path], used=True))
    known = {one.path for kind in (image.folders, image.fifos, image.bundles) for one in kind}
    known |= {socket_path(one.unix) for one in image.descriptions if one.HasField("unix")}
    for folder in image.folders:
        if folder.used:
            folder.lacks = _lacks(folder.path, known)


def _lacks(folder: bytes, known: Set[bytes]) -> bytes:
    """The name of something in a directory that is not among these paths; empty if all are."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # it may just have been removed
        return next((entry.name for entry in entries if os.path.join(folder, entry.name) not in known), b"")
    return b""


def _is_own(path: bytes, status: os.stat_result, small: SmallFiles) -> bool:
    """Whether the job has made it."""
    if status.st_uid != small.uid or OF_KERNEL.match(path):
        return False
    return (_born_ns(path) or status.st_ctime_ns) >= small.since_ns


def _paths(image: pb.Tree) -> Iterator[bytes]:
    """The paths that a tree needs: of what it has open or watches, and where its processes stand."""
    for process in image.processes:
        if not process.zombie:
            for path, inode in ((process.cwd, process.cwd_inode), (process.root, process.root_inode)):
                if path and not inode.removed:
                    yield path
    for description in image.descriptions:
        yield from paths_of(description)
    for index in fingerprints.mapped_shared(image):
        yield image.files[index].path


def _add_parents(path: bytes, owner: int, folders: dict[bytes, os.stat_result]) -> None:
    folder = os.path.dirname(path)
    while folder not in folders:
        try:
            status = os.lstat(folder)
        except OSError:
            break  # it is gone already
        if status.st_uid != owner or not stat.S_ISDIR(status.st_mode):
            break
        folders[folder] = status
        folder = os.path.dirname(folder)


def _place(path: bytes, status: os.stat_result, *, used: bool) -> pb.Place:
    return pb.Place(
        path=path,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        used=used,
        mtime_ns=status.st_mtime_ns,
        attributes=file_attributes.extended(path),
    )


def _born_ns(path: bytes) -> int:
    """When it was made; 0 if its file system does not tell."""
    found = bytearray(_STATX_SIZE)
    try:
        syscall(NR.statx, _AT_FDCWD, path + b"\0", _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found)
    except OSError:
        return 0
    mask, seconds, nanoseconds = _BIRTH.unpack_from(found)
    return int(seconds * 1_000_000_000 + nanoseconds) if mask & _STATX_BTIME else 0


# -------------------------------------------------------------------------------------------- from an image


def why_missing(image: pb.Tree, path: bytes, error: OSError, opener: Opener) -> str:
    """Why what a path leads to is not there for a restore; empty if the restore makes it again.

    Args:
        image: the tree.
        path: of something that it needs.
        error: from looking for it.
        opener: of the processes that need it.
    """
    kept = (one for kind in (image.folders, image.fifos, image.bundles) for one in kind)
    again = next((one for one in kept if one.path == path), None)
    if not isinstance(error, FileNotFoundError) or again is None:
        return error.strerror or str(error)
    if isinstance(again, pb.Place) and again.lacks:
        why = f"{os.fsdecode(again.lacks)} was in it, which the snapshot does not have"
    else:
        why = why_not_make(image, path, opener)
    if why:
        return f"it is missing, and cannot be made again: {why}"
    return ""


def why_not_make(image: pb.Tree, path: bytes, opener: Opener) -> str:
    """Why nothing can be made under a name; empty if it can."""
    if os.path.lexists(path):
        return "something else has its name"
    known = {folder.path for folder in image.folders}
    directory = os.path.dirname(path)
    while directory in known and not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    if not os.path.isdir(directory):
        return f"there is no directory {os.fsdecode(directory)} to put it into"
    if os.path.realpath(directory) != directory:
        return f"a symbolic link leads to {os.fsdecode(directory)} now"
    if not opener.may_write_in(directory):
        return f"this user may not write in {os.fsdecode(directory)}"
    return ""


def make(image: pb.Tree, openers: Openers, made: Made) -> None:
    """Make the places that the tree needs and that are missing.

    Raises:
        OSError: the kernel's reason.
        ImageDamaged: a place has a name that no checkpoint writes.
    """
    for place in (*image.folders, *image.fifos):
        if OF_KERNEL.match(place.path) or not place.path.startswith(b"/") or b"\0" in place.path:
            raise ImageDamaged(f"the image has a directory or a named pipe with an impossible name: {place.path!r}")
    for folder in image.folders:
        if folder.used and not folder.lacks and not os.path.lexists(folder.path):
            make_folders(image, folder.path + b"/", made, openers.path(folder.path).straight())
            _tell(made, "directory", folder.path)
    for fifo in image.fifos:
        if not os.path.lexists(fifo.path):
            opener = openers.path(fifo.path).straight()
            make_folders(image, fifo.path, made, opener)
            opener.mkfifo(fifo.path)
            made.undo.append(partial(opener.unlink, fifo.path))
            with _opened(fifo, os.O_RDWR | os.O_NONBLOCK, opener) as fd:
                give(fd, fifo, image, made)
                os.utime(fd, ns=(fifo.mtime_ns, fifo.mtime_ns))
            _tell(made, "named pipe", fifo.path)


def _tell(made: Made, what: str, path: bytes) -> None:
    made.notices.append(f"the {what} {os.fsdecode(path)}, which the job had made, was missing and is made again")


def make_folders(image: pb.Tree, path: bytes, made: Made, opener: Opener) -> None:
    """Make the missing directories above a path. Raises OSError."""
    for folder in image.folders:  # parents first
        if path.startswith(folder.path + b"/") and not os.path.lexists(folder.path):
            opener.mkdir(folder.path, 0o700)
            made.undo.append(partial(_remove_folder, folder.path, opener))
            with _opened(folder, os.O_RDONLY | os.O_DIRECTORY, opener) as fd:
                give(fd, folder, image, made)
            made.late.append(partial(_restore_time, folder, opener))


@contextmanager
def _opened(place: pb.Place, flags: int, opener: Opener) -> Iterator[int]:
    """Open something that was just made."""
    fd = opener.open(place.path, flags | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_uid not in opener.users:
            raise FileExistsError(errno.EEXIST, "something else took its name", os.fsdecode(place.path))
        yield fd
    finally:
        os.close(fd)


def _restore_time(folder: pb.Place, opener: Opener) -> None:
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY, opener) as fd:
        os.utime(fd, ns=(folder.mtime_ns, folder.mtime_ns))


def give(fd: int, one: pb.Bundle | pb.Place, image: pb.Tree, made: Made) -> None:
    """Give something new its owner, extended attributes and mode. Raises OSError."""
    theirs = [process.credentials for process in image.processes]
    if not procfs.is_root():
        with suppress(OSError):  # this user is no longer in that group
            os.fchown(fd, -1, one.gid)
    elif any(one.uid in of.uids for of in theirs):
        os.fchown(fd, one.uid, one.gid)
    for why in file_attributes.restore_extended(fd, one.attributes):
        made.notices.append(f"{os.fsdecode(one.path)}, which is made again, {why}")
    kept = _OF_ALL
    if stat.S_ISDIR(os.fstat(fd).st_mode) and any(one.gid in (*of.gids, *of.groups) for of in theirs):
        kept |= stat.S_ISGID
    os.fchmod(fd, one.mode & kept)


def _remove_folder(path: bytes, opener: Opener) -> None:
    with suppress(OSError):  # something was put into it meanwhile: leave it
        opener.rmdir(path)

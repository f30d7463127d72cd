"""The current, root and open directories of a process: found by their names, or made again if they were removed.

A removed directory in which a process still is, is empty, and nothing can be created in it. A restore makes such a
directory: it creates it under its old name if that is free, enters it, and removes it.

Documented in: chdir(2), chroot(2), rmdir(2), getcwd(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Inode
from torpor.objects.paths.file_names import DELETED, is_makeshift, makeshift_name
from torpor.objects.paths.opener import Identity, Opener
from torpor.remote.sys import closed_on_error

_SPARE = (b"/tmp", b"/dev/shm")
"""Where to make a removed directory if none of its old parents can hold it."""


@dataclass(frozen=True)
class Folder:
    """A directory as it was found."""

    path: str
    """For a removed directory its old path."""
    status: os.stat_result
    removed: bool

    @classmethod
    def of(cls, link: str) -> Folder:
        """The target of a link in /proc/PID."""
        return cls.seen(os.readlink(link), os.stat(link))

    @classmethod
    def seen(cls, path: str, status: os.stat_result) -> Folder:
        """A directory with this path in /proc and this status."""
        removed = path.endswith(DELETED) and not _leads(path, status)
        return cls(path.removesuffix(DELETED) if removed else path, status, removed)

    def describe(self, out: Inode) -> None:
        """Write everything but the path to the image."""
        describe(self.status, out)
        out.removed = self.removed


def describe(status: os.stat_result, out: Inode) -> None:
    """Write the identity, mode and owner of an inode to the image."""
    out.dev, out.ino, out.mode = status.st_dev, status.st_ino, status.st_mode
    out.uid, out.gid = status.st_uid, status.st_gid


def unsupported(name: str, pid: int) -> Iterator[Reason]:
    """Say why a process's directories cannot be restored.

    Args:
        name: the process, for messages.
        pid: the process.

    Raises:
        OSError: it has ended, or belongs to another user.
    """
    outer = f"/proc/{pid}/root" if os.readlink(f"/proc/{pid}/root") == "/" else ""
    for link, what in (("root", "root"), ("cwd", "current")):
        try:
            here = Folder.of(f"/proc/{pid}/{link}")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            why = (
                f"the path of its {what} directory is longer than the kernel shows ({os.pathconf('/', 'PC_PATH_MAX')})"
            )
            yield Reason(name, why, "have it change to a directory with a shorter path")
            continue
        if not here.removed and not _leads(outer + here.path, here.status):
            why = f"its {what} directory is {here.path}, but that path now leads to another directory"
            yield Reason(name, why, "have it change to a directory that has a name")


def _leads(path: str, status: os.stat_result) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.stat(path), status)
    return False


# Restore


def enter(path: bytes, inode: Inode, opener: Opener, made: dict[Identity, int] | None = None) -> int:
    """A descriptor (O_PATH) of a directory of an image.

    Args:
        path: its name.
        inode: what it was.
        opener: enters it.
        made: directories that had been removed and were made again, by their old identity. None: make none, and return
            a directory in which it can be made.

    Raises:
        OSError: it cannot be entered, or made.
    """
    if not inode.removed:
        return opener.enter(path, (inode.dev, inode.ino) if inode.ino else None)
    key = inode.dev, inode.ino
    if made is None:
        return open_writable_directory(path, opener)
    if key not in made:
        made[key] = recreate_removed(path, opener, lambda name: _make(name, inode, opener))
    return os.dup(made[key])


def open_writable_directory(path: bytes, opener: Opener) -> int:
    """A descriptor (O_PATH) of a directory in which a removed one can be made.

    Raises:
        OSError: there is none.
    """
    for place in _places(path):
        if opener.may_write_in(place):
            return opener.enter(place)
    raise PermissionError(errno.EACCES, "it was removed, and there is no directory here in which it can be made again")


def recreate_removed(path: bytes, opener: Opener, make: Callable[[bytes], int]) -> int:
    """Make what was removed: under its old name if that is free, else near it.

    Args:
        path: its old name.
        opener: makes it.
        make: makes it under a name, removes that name again, and returns a descriptor.

    Raises:
        OSError: it can be made nowhere.
    """
    try:
        with parents(path, opener):
            return make(path)
    except OSError as error:
        failed = error
    for place in _places(path):
        try:
            return make(place + b"/" + makeshift_name())
        except OSError as error:
            failed = error
    raise failed


def warn_if_renamed(path: bytes, fd: int) -> list[str]:
    """Warn if a removed directory that was made again has another name than before; empty if it has the same."""
    name = os.fsencode(os.readlink(f"/proc/self/fd/{fd}")).removesuffix(os.fsencode(DELETED))
    if not is_makeshift(name):
        return []
    return [f"{os.fsdecode(path)}, which was removed, is shown as {os.fsdecode(name)}: its name was taken"]


@contextmanager
def parents(path: bytes, opener: Opener) -> Iterator[None]:
    """Create missing parent directories of a path for the time of the block."""
    with ExitStack() as made:
        missing = []
        while (path := os.path.dirname(path)).strip(b"/"):
            try:
                opener.lstat(path)
                break
            except FileNotFoundError:
                missing.append(path)
        for one in reversed(missing):
            opener.mkdir(one, 0o700)
            made.callback(opener.rmdir, one)
        yield


def _places(path: bytes) -> Iterator[bytes]:
    """Directories in which it may be made: its old parents, the nearest first."""
    while path.strip(b"/"):
        path = os.path.dirname(path)
        yield path
    yield from _SPARE


def _make(path: bytes, inode: Inode, opener: Opener) -> int:
    opener.mkdir(path, 0o700)
    try:
        with closed_on_error(opener.enter(path)) as fd:
            restore_owner_and_mode(fd, inode, opener)
            return fd
    finally:
        opener.rmdir(path)


def restore_owner_and_mode(fd: int, inode: Inode, opener: Opener) -> None:
    """Set the mode of something new, and as root its owner.

    Raises:
        OSError: the kernel's reason, or something else has taken its name since it was made.
    """
    now = os.fstat(fd)
    if now.st_uid not in opener.users:
        raise FileExistsError(errno.EEXIST, "something else took its name while it was made")
    opener.call(NR.chmod, b"/proc/self/fd/%d\0" % fd, stat.S_IMODE(inode.mode))
    if procfs.is_root() and (now.st_uid, now.st_gid) != (inode.uid, inode.gid):
        os.chown(f"/proc/self/fd/{fd}", inode.uid, inode.gid)

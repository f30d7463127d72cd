"""Opens the paths of an image on the tree's mounts, and with the credentials of the processes that get the files.

*The mounts.* rename(2) and link(2) compare mounts, and getcwd(2) says "(unreachable)" for a directory outside of the
root. So files for a tree in a mount namespace of its own are opened beneath its init's /proc/PID/root (openat2(2),
RESOLVE_IN_ROOT), never by the same name outside.

*The credentials.* Root opens for a user's tree only what that user may open now: with the process's file system user
and group, its supplementary groups and its capabilities (credentials(7)). It follows no symbolic link, since the paths
that the kernel shows at a checkpoint have none. A program may have opened a file, such as a daemon's log, before it
gave up root's privileges, so that it may not open the file itself any more. Root opens such a file in its place if the
file still has the device and inode that the image says, which root itself has written.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Credentials, Description, Process, Tree, UnixSocket, Vma
from torpor.remote.sys import Argument, FileRights, syscall, syscall_as

T = TypeVar("T")
Identity = tuple[int, int]
"""Device and inode number of a file."""

HOW = struct.Struct("<3Q")
"""struct open_how (openat2(2))."""
RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x04, 0x10
O_TMPFILE = 0o20000000
OF_FILES = 0x800001F | 1 << 9
"""CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, MKNOD."""
_WITH_O_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""openat2 accepts no other flag with O_PATH."""
RENAME_NOREPLACE = 1
AT_EACCESS = AT_REMOVEDIR = 0x200
_IDS = 4
"""Real, effective, saved, and file system id."""
_TRIES = 64
"""If something is renamed while ".." is resolved, openat2 fails with EAGAIN: try this often."""


@dataclass(frozen=True)
class Opener:
    """Opens paths with the credentials of one process, or of any of those that get the file."""

    _root: int
    """A descriptor of the root directory to open beneath; -1: this process's own root."""
    _own: FileRights
    """The credentials of this thread."""
    _rights: tuple[FileRights, ...]
    """The credentials to try, one after the other."""
    _follows: bool = True
    """Whether it follows symbolic links in paths, with its own credentials."""

    def open(self, path: bytes, flags: int, mode: int = 0, *, known: Identity | None = None) -> int:
        """Open a path; the descriptor is close-on-exec.

        Args:
            path: an absolute path.
            flags: as of open(2).
            mode: of a new file.
            known: the identity of the image's file. If the path still leads to it, the restorer's own credentials may
                open it.

        Raises:
            OSError: the kernel's reason.
        """
        if not path.startswith(b"/") or b"\0" in path:
            raise OSError(errno.EINVAL, "no file has such a name")
        try:
            return self._as_any(lambda rights: self._open(path, flags, mode, rights))
        except PermissionError:
            if known is None or self._rights == (self._own,) or flags & os.O_CREAT:
                raise
            found = self._known(path, known)
            if found is None:
                raise
        try:
            if flags & os.O_PATH:
                return os.dup(found)
            return os.open(f"/proc/self/fd/{found}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
        finally:
            os.close(found)

    def lookup(self, path: bytes, *, follow: bool = True, known: Identity | None = None) -> int:
        """A descriptor of what a path leads to, opened with O_PATH."""
        return self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW), known=known)

    def enter(self, path: bytes, known: Identity | None = None) -> int:
        """A descriptor (O_PATH) of a directory that may be entered: chdir(2) and chroot(2) check more than O_PATH."""
        try:
            return self.open(path.rstrip(b"/") + b"/.", os.O_PATH | os.O_DIRECTORY)
        except PermissionError:
            if known is None or (found := self._known(path, known)) is None:
                raise
            return found

    def reopened(self, fd: int, flags: int, known: Identity | None = None) -> int:
        """Open a new description of an open file and close `fd`. No path is resolved, so the file cannot be swapped."""
        name = b"/proc/self/fd/%d\0" % fd
        flags |= os.O_CLOEXEC | os.O_NOCTTY
        try:
            return self._as_any(lambda rights: self._call(rights, NR.open, name, flags))
        except PermissionError:
            found = os.fstat(fd)
            if known != (found.st_dev, found.st_ino):
                raise
            return syscall(NR.open, name, flags)
        finally:
            os.close(fd)

    def opened(self, path: bytes, fd: int, flags: int, known: Identity | None = None) -> int:
        """Open a new description of a file that was found by a path, and close `fd`.

        Raises:
            OSError: as `open`; EBUSY if the path now leads to another file.
        """
        if not flags & os.O_NOFOLLOW:
            return self.reopened(fd, flags, known)
        # O_NOFOLLOW needs the name itself: /proc/self/fd/N is a link.
        try:
            again = self.open(path, flags | os.O_NOCTTY, known=known)
            if not os.path.samestat(os.fstat(again), os.fstat(fd)):
                os.close(again)
                raise OSError(errno.EBUSY, "its name was given to another file meanwhile")
            return again
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The parent directory (O_PATH) and the last component of a path, for calls that change a directory."""
        directory = self.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        try:
            yield directory, os.path.basename(path) + b"\0"
        finally:
            os.close(directory)

    def may_write_in(self, directory: bytes) -> bool:
        """Whether files can be created in a directory."""
        try:
            fd = self.open(directory, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            # With AT_EACCESS faccessat2 checks the effective ids, not the real ones.
            name = b"/proc/self/fd/%d\0" % fd
            self.call(NR.faccessat2, -1, name, os.W_OK | os.X_OK, AT_EACCESS)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def lstat(self, path: bytes) -> os.stat_result:
        """The status of a path, without following a symbolic link at its end."""
        fd = self.lookup(path, follow=False)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the mode of a path."""
        fd = self.lookup(path, follow=False)
        try:
            self.call(NR.chmod, b"/proc/self/fd/%d\0" % fd, mode)
        finally:
            os.close(fd)

    def own(self) -> Opener:
        """One that opens with the restorer's own credentials."""
        return replace(self, _rights=(self._own,))

    def straight(self) -> Opener:
        """One that follows no symbolic link: what is made again comes to where it was, or nowhere."""
        return replace(self, _follows=False)

    @property
    def users(self) -> set[int]:
        """The users with whose credentials it opens."""
        return {rights.uid for rights in self._rights}

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        with self.parent(path) as (directory, name):
            self.call(NR.mkdirat, directory, name, mode)

    def mkfifo(self, path: bytes) -> None:
        """Make a FIFO with mode 0600."""
        with self.parent(path) as (directory, name):
            self.call(NR.mknodat, directory, name, stat.S_IFIFO | 0o600, 0)

    def rmdir(self, path: bytes) -> None:
        """Remove a directory."""
        with self.parent(path) as (directory, name):
            self.call(NR.unlinkat, directory, name, AT_REMOVEDIR)

    def unlink(self, path: bytes) -> None:
        """Remove a name."""
        with self.parent(path) as (directory, name):
            self.call(NR.unlinkat, directory, name, 0)

    def rename(self, path: bytes, new: bytes) -> None:
        """Give a file another name on its file system, but never replace another file.

        Raises:
            FileExistsError: something has the new name.
        """
        with self.parent(path) as (directory, name), self.parent(new) as (other, wanted):
            try:
                self.call(NR.renameat2, directory, name, other, wanted, RENAME_NOREPLACE)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):  # NFS cannot do that
                    raise
                self.call(NR.linkat, directory, name, other, wanted, 0)
                self.call(NR.unlinkat, directory, name, 0)

    def call(self, nr: int, *args: Argument) -> int:
        """Make a system call with these credentials. Raises OSError."""
        return self._as_any(lambda rights: self._call(rights, nr, *args))

    def _as_any(self, act: Callable[[FileRights], T]) -> T:
        for rights in self._rights[:-1]:
            try:
                return act(rights)
            except PermissionError:
                continue
        return act(self._rights[-1])

    def _open(self, path: bytes, flags: int, mode: int, rights: FileRights) -> int:
        flags |= os.O_CLOEXEC
        resolve = RESOLVE_IN_ROOT if self._root >= 0 else 0
        if rights.uid != self._own.uid or not self._follows:
            resolve |= RESOLVE_NO_SYMLINKS
        if not resolve:
            return os.open(path, flags, mode)
        if flags & os.O_PATH:
            flags &= _WITH_O_PATH
        new = flags & os.O_CREAT or flags & O_TMPFILE == O_TMPFILE
        name, how = path + b"\0", HOW.pack(flags, mode if new else 0, resolve)
        for _ in range(_TRIES):
            try:
                return self._call(rights, NR.openat2, self._root, name, how, HOW.size)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.ELOOP and resolve & RESOLVE_NO_SYMLINKS and not flags & os.O_NOFOLLOW:
                    why = "its path has a symbolic link, and none is followed to a file of another user or a new one"
                    raise OSError(errno.ELOOP, why) from None
                raise
        raise OSError(errno.EAGAIN, "directories of its path were renamed each time it was opened")

    def _call(self, rights: FileRights, nr: int, *args: Argument) -> int:
        if rights == self._own:
            return syscall(nr, *args)
        return syscall_as(rights, self._own, nr, *args)

    def _known(self, path: bytes, known: Identity) -> int | None:
        """Open the image's file with our own credentials and without following links; None if it is another file."""
        name = path + b"\0"
        resolve = RESOLVE_NO_SYMLINKS | (RESOLVE_IN_ROOT if self._root >= 0 else 0)
        how = HOW.pack(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, resolve)
        try:
            fd = syscall(NR.openat2, self._root, name, how, HOW.size)
        except OSError:
            return None
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) == known and not stat.S_ISLNK(found.st_mode):
            return fd
        os.close(fd)
        return None


class Openers:
    """The openers of an image's files. A context manager: its exit closes what it keeps."""

    def __init__(self, image: Tree, root: int = -1) -> None:
        """Note the image and its root directory.

        Args:
            image: the tree.
            root: a descriptor of the root directory to open beneath; -1: this process's own root.
        """
        self.image = image
        self._root = root
        self._own = _own()
        self.removed: dict[Identity, int] = {}
        """Directories that had been removed and were made again, by their old identity: processes may share one."""

    def __enter__(self) -> Openers:
        return self

    def __exit__(self, *_: object) -> None:
        while self.removed:
            os.close(self.removed.popitem()[1])

    def process(self, process: Process) -> Opener:
        """The opener for a process."""
        return self._opener([process])

    def description(self, index: int) -> Opener:
        """The opener for the processes that have a description. One in a socket's queue is opened for the root."""
        return self._opener(self._holders[index])

    def file(self, index: int) -> Opener:
        """The opener for the processes that have mapped a file, or execute it."""
        return self._opener(self._mappers[index])

    def path(self, path: bytes) -> Opener:
        """The opener for the processes that have a file open, mapped or watched, or are in a directory."""
        files = (k for k, file in enumerate(self.image.files) if file.path == path)
        opened = (k for k, one in enumerate(self.image.descriptions) if path in paths_of(one))
        return self._opener(
            [process for k in files for process in self._mappers[k]]
            + [process for k in opened for process in self._holders[k]]
            + [process for process in self.image.processes if path in (process.cwd, process.root)]
        )

    def shared(self, index: int) -> Opener:
        """The opener for the processes that have shared memory mapped or open."""
        found = [
            process
            for process in self.image.processes
            if any(vma.kind in (Vma.SHARED, Vma.MEMORY_PRIVATE) and vma.shared == index for vma in process.memory.vmas)
        ]
        for number, one in enumerate(self.image.descriptions):
            if one.WhichOneof("kind") == "memfd" and one.memfd.shared == index:
                found += self._holders[number]
        return self._opener(found)

    def _opener(self, processes: Sequence[Process]) -> Opener:
        if not procfs.is_root():  # others cannot take other credentials
            return Opener(self._root, self._own, (self._own,))
        mine = [one for one in processes if _is_complete(one)] or [*filter(_is_complete, self.image.processes)][:1]
        rights = dict.fromkeys(_of(process.credentials) for process in mine)
        return Opener(self._root, self._own, tuple(rights) or (self._own,))

    @cached_property
    def _holders(self) -> Mapping[int, Sequence[Process]]:
        """For each description, by index, the processes that have it; parents come first."""
        found: dict[int, list[Process]] = defaultdict(list)
        for process in self.image.processes:
            for entry in process.fds:
                found[entry.description].append(process)
        return found

    @cached_property
    def _mappers(self) -> Mapping[int, Sequence[Process]]:
        """For each file, by index, the processes that have it mapped."""
        found: dict[int, list[Process]] = defaultdict(list)
        for process in self.image.processes:
            if not process.zombie:
                mine = {vma.file for vma in process.memory.vmas if vma.kind in (Vma.FILE_PRIVATE, Vma.FILE_SHARED)}
                for index in mine | {process.memory.exe}:
                    found[index].append(process)
        return found


def paths_of(one: Description) -> list[bytes]:
    """The paths that a description needs: of what it opens or watches, and of the directory of its socket's file."""
    match one.WhichOneof("kind"):
        case "file":
            return [one.file.path]
        case "directory" if not one.directory.inode.removed:
            return [one.directory.path]
        case "fifo" if not one.fifo.inode.removed:
            return [one.fifo.path]
        case "name":
            return [one.name.path]
        case "inotify":
            return [watch.path for watch in one.inotify.watches if watch.path]
        case "unix":
            path = socket_path(one.unix)
            return [os.path.dirname(path)] if path.startswith(b"/") else []
        case _:
            return []


def socket_path(unix: UnixSocket) -> bytes:
    """The path for a socket's file; empty if it has none."""
    if unix.moved:
        return unix.path
    return b"" if unix.name.startswith(b"\0") else unix.name


def _own() -> FileRights:
    """The credentials of the calling thread."""
    status = procfs.status(procfs.read("/proc/thread-self/status"))
    uid, gid = (int(status[name].split()[3]) for name in (b"Uid", b"Gid"))
    groups = tuple(sorted(map(int, status[b"Groups"].split())))
    return FileRights(uid, gid, groups, int(status[b"CapEff"], 16) & OF_FILES)


def _of(image: Credentials) -> FileRights:
    """The credentials of a process of an image."""
    return FileRights(image.uids[3], image.gids[3], tuple(sorted(image.groups)), image.cap_effective & OF_FILES)


def _is_complete(process: Process) -> bool:
    """Whether it had not ended, and the image has its ids."""
    return not process.zombie and len(process.credentials.uids) == len(process.credentials.gids) == _IDS

"""Finding the files of unix sockets, and binding sockets so that their files are where they were (unix(7)).

A socket keeps the name that it was bound to: getsockname(2) returns it. Its file may be elsewhere: a relative name
starts in an unknown directory, and a file may be renamed or linked into place, removed, or its name taken over by
another socket. The kernel shows the file's inode number (UNIX_DIAG_VFS), by which it is found in the directory where it
was made, or near what the program uses; root gets the file itself (SIOCUNIXFILE). A file that is not found has no name.

A restore binds a socket to its old name, if that is available for a moment, and moves its file to where it was. Until
all connections are made, the file has some name by which the other sockets reach it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.paths.file_names import is_gone, makeshift_name
from torpor.objects.paths.opener import Opener, socket_path
from torpor.objects.sockets import addresses
from torpor.remote.children import forked
from torpor.remote.sys import syscall
from torpor.util.workers import run_in_thread

LONGEST = 108
"""sizeof(sun_path)."""
SIOCUNIXFILE = 0x89E0
"""An ioctl that opens a bound socket's file with O_PATH (include/uapi/linux/un.h; CAP_NET_ADMIN)."""
CLONE_FS, CLONE_NEWUSER = 0x200, 0x10000000
_MANY = 4096
"""The most names of a directory to look at."""


class Place(NamedTuple):
    """Where a socket's file is."""

    path: bytes
    """An absolute path; empty if it has no name."""
    directory: bytes = b""
    """The directory in which a relative name starts."""


def of(raw: bytes) -> bytes:
    """A name for bind(): without the zero byte that ends a path. An abstract name starts with a zero byte."""
    return raw if raw.startswith(b"\0") else raw.rstrip(b"\0")


def printable(name: bytes) -> str:
    """A name for messages: an abstract one starts with @."""
    text = os.fsdecode(name.rstrip(b"\0"))
    return "@" + text[1:] if text.startswith("\0") else text


def find(name: bytes, inode: int | None, directories: Iterable[bytes], bound_path: bytes) -> Place:
    """Find the file of a socket.

    Args:
        name: that it was bound to.
        inode: the lower 32 bits of the file's inode number.
        directories: where a relative name may start.
        bound_path: the file's name by the kernel: see `bound_path`.
    """
    roots = [b""] if name.startswith(b"/") else list(dict.fromkeys(directories))
    for root in roots:
        path = os.path.join(root, name)
        if _is_it(path, inode):
            real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            return Place(name if not root else real, root)
    for root in roots:
        folder = os.path.realpath(os.path.dirname(os.path.join(root, name)))
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in islice(entries, _MANY):
                if entry.inode() & 0xFFFFFFFF == inode and _is_it(entry.path, inode):
                    return Place(entry.path, root)
    # Last, since the kernel's name for the file may be gone while another one exists.
    return Place(bound_path, roots[0] if roots else b"")


def directories(pids: Iterable[int]) -> Iterator[bytes]:
    """Where a relative name of processes may start: their current directories, and those in which they were started."""
    for pid in pids:
        with suppress(OSError):
            link = b"/proc/%d/cwd" % pid
            if not is_gone(found := os.readlink(link), os.stat(link).st_ino):
                yield found
        with suppress(OSError):
            for word in procfs.read(f"/proc/{pid}/environ").split(b"\0"):
                name, _, value = word.partition(b"=")
                if name in (b"PWD", b"OLDPWD", b"HOME") and value.startswith(b"/"):
                    yield value


def _is_it(path: bytes, inode: int | None) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and inode is not None and found.st_ino & 0xFFFFFFFF == inode


def bound_path(sock: int) -> bytes:
    """The kernel's name for a socket's file; empty if it has none any more, or if this process is not root."""
    try:
        fd = fcntl.ioctl(sock, SIOCUNIXFILE)
    except OSError:
        return b""
    try:
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        return path if path.startswith(b"/") and not is_gone(path, os.fstat(fd).st_ino) else b""
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------- from an image


def address(name: bytes) -> tuple[bytes, int]:
    """A struct sockaddr_un and its length."""
    ended = name.startswith(b"\0") or len(name) == LONGEST  # the longest path has no room for a zero behind it
    packed = struct.pack("=H", socket.AF_UNIX) + (name if ended else name + b"\0")
    return packed, len(packed)


@dataclass
class Bound:
    """Bound sockets of an image, until their files are where they were."""

    warnings: list[str]
    _waiting: list[tuple[Opener, bytes, UnixMessage]] = field(default_factory=list)
    """With the current name of the file."""
    _made: list[tuple[Opener, bytes]] = field(default_factory=list)
    _folders: list[tuple[Opener, bytes]] = field(default_factory=list)
    """Directories that were made for a moment; those in others come later."""

    def bind(self, sock: socket.socket, unix: UnixMessage, opener: Opener) -> bytes:
        """Bind a socket as it was. An old file at its path must have been removed.

        Returns:
            The name by which it can be reached for now.
        """
        if unix.name.startswith(b"\0"):
            opener.call(NR.bind, sock.fileno(), *address(unix.name))
            return bytes(unix.name)
        path = socket_path(unix)
        if not path:
            return self._bind_nameless(sock, unix, opener)
        home, directory = os.path.dirname(path), unix.directory or os.path.dirname(path)
        try:
            if unix.moved and not _on_one_mount(home, os.path.dirname(os.path.join(directory, unix.name)), opener):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            at = self._bind_at(sock, unix.name, directory, opener)
        except OSError:
            if not unix.moved:
                raise
            at = self._bind_apart(sock, unix.name, home, opener)
        opener.chmod(at, 0o600)
        return self._hide(opener, at, unix) if at != path else self._wait(opener, at, unix)

    def _bind_at(self, sock: socket.socket, name: bytes, directory: bytes, opener: Opener) -> bytes:
        if name.startswith(b"/proc/"):
            raise OSError(errno.ENOENT, "it began at a descriptor of the program")
        if name.startswith(b"/"):
            opener.call(NR.bind, sock.fileno(), *address(name))
            at = name
        else:
            _within(opener.enter(directory), lambda: opener.call(NR.bind, sock.fileno(), *address(name)))
            at = os.path.normpath(os.path.join(directory, name))
        self._made.append((opener, at))
        return at

    def _bind_nameless(self, sock: socket.socket, unix: UnixMessage, opener: Opener) -> bytes:
        """Bind a socket whose file will have no name."""
        if unix.name.startswith(b"/"):
            with suppress(OSError):  # another file has the name
                return self._hide(opener, self._bind_at(sock, unix.name, b"", opener), unix)
        import tempfile  # noqa: PLC0415  seldom needed, and slow

        # Its user may not write to the restorer's directory for temporary files.
        own = opener.own()
        return self._wait(own, self._bind_apart(sock, unix.name, os.fsencode(tempfile.gettempdir()), own), unix)

    def _bind_apart(self, sock: socket.socket, name: bytes, home: bytes, opener: Opener) -> bytes:
        """Bind a socket to a name that starts in a new directory in `home`."""
        folder = os.path.join(home, makeshift_name())
        self._make_folder(folder, opener)
        at = os.path.normpath(os.path.join(folder, name.lstrip(b"/")))
        if not name or not at.startswith(folder + b"/") or not self._bound_below(folder, at, sock, name, opener):
            self._warn(name)
            name = makeshift_name()
            at = os.path.join(folder, name)
            _within(opener.enter(folder), lambda: opener.call(NR.bind, sock.fileno(), *address(name)))
        self._made.append((opener, at))
        return at

    def _bound_below(self, folder: bytes, at: bytes, sock: socket.socket, name: bytes, opener: Opener) -> bool:
        """Bind a socket to a name that starts in a directory of ours.

        For an absolute name a child with that root directory does it. Returns whether it worked: to change its root, a
        user's child needs a user namespace.
        """
        within = os.path.dirname(at)[len(folder) + 1 :].split(b"/")
        for count in range(1, len(within) + 1) if within[0] else ():
            self._make_folder(os.path.join(folder, *within[:count]), opener)
        if not name.startswith(b"/"):
            _within(opener.enter(folder), lambda: opener.call(NR.bind, sock.fileno(), *address(name)))
            return True

        def work() -> None:
            if not procfs.is_root():
                syscall(NR.unshare, CLONE_NEWUSER)
            os.fchdir(directory)
            os.chroot(b".")
            opener.call(NR.bind, sock.fileno(), *address(name))

        directory = opener.enter(folder)
        try:
            os.waitpid(forked(work), 0)
        finally:
            os.close(directory)
        return of(addresses.local_name(sock.fileno())[2:]) == name

    def _make_folder(self, path: bytes, opener: Opener) -> None:
        opener.mkdir(path, 0o700)
        self._folders.append((opener, path))

    def _hide(self, opener: Opener, at: bytes, unix: UnixMessage) -> bytes:
        """Give a file a temporary name that nobody else uses."""
        hidden = os.path.join(os.path.dirname(at), makeshift_name())
        opener.rename(at, hidden)
        self._made[-1] = (opener, hidden)
        return self._wait(opener, hidden, unix)

    def _wait(self, opener: Opener, at: bytes, unix: UnixMessage) -> bytes:
        self._waiting.append((opener, at, unix))
        return at

    def _warn(self, name: bytes) -> None:
        # Another file has the name now, or the directory is gone.
        self.warnings.append(f"the unix socket {printable(name)} cannot get its name back, and shows another one")

    def settle(self) -> None:
        """Move every file to where it was, with its mode and owner. From now on none of them is connected to."""
        for opener, at, unix in self._waiting:
            path = socket_path(unix)
            if not path:
                opener.unlink(at)
                continue
            if at != path:
                opener.rename(at, path)
                self._made.append((opener, path))
            _give(path, unix, opener, self.warnings)
        self._waiting.clear()
        self._remove_folders()

    def remove(self) -> None:
        """Remove all names: the restore has failed."""
        for opener, name in self._made:
            with suppress(OSError):
                opener.unlink(name)
        self._remove_folders()

    def _remove_folders(self) -> None:
        while self._folders:
            opener, path = self._folders.pop()
            with suppress(OSError):  # somebody has put something there
                opener.rmdir(path)


def _on_one_mount(one: bytes, other: bytes, opener: Opener) -> bool:
    """Whether a file can be moved from one directory to another (rename(2))."""
    if one == other:
        return True
    mounts = set()
    for path in (one, other):
        directory = opener.enter(path)
        try:
            info = procfs.read(f"/proc/self/fdinfo/{directory}")
        finally:
            os.close(directory)
        mounts.add(next(line for line in info.splitlines() if line.startswith(b"mnt_id:")))
    return len(mounts) == 1


def connect(sock: socket.socket, name: bytes) -> None:
    """Connect to a socket of the tree by a name that `Bound.bind` returned, with the restorer's own credentials."""
    with for_python(name) as there:
        sock.connect(there)


@contextmanager
def for_python(name: bytes) -> Iterator[bytes]:
    """A name of a socket that exists, for Python's sockets: unlike the kernel these take no path of 108 bytes."""
    if len(name) < LONGEST or name.startswith(b"\0"):
        yield name
        return
    found = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        yield b"/proc/self/fd/%d" % found
    finally:
        os.close(found)


def _give(path: bytes, unix: UnixMessage, opener: Opener, warnings: list[str]) -> None:
    """Set the mode of a socket's file, and its owner if that is another one."""
    found = opener.lstat(path)
    if unix.HasField("owner") and (found.st_uid, found.st_gid) != (unix.owner.uid, unix.owner.gid):
        fd = opener.lookup(path, follow=False)
        try:
            opener.call(NR.chown, b"/proc/self/fd/%d\0" % fd, unix.owner.uid, unix.owner.gid)
        except OSError:
            warnings.append(
                f"the unix socket {printable(path)} does not belong to user {unix.owner.uid} and group"
                f" {unix.owner.gid} any more: only root can give it to them"
            )
        finally:
            os.close(fd)
    opener.chmod(path, unix.mode & 0o7777)


def _within(directory: int, act: Callable[[], object]) -> None:
    """Call `act` in a thread with another current directory; closes `directory`. Raises what `act` raises."""

    def work() -> None:
        syscall(NR.unshare, CLONE_FS)  # in this thread alone
        syscall(NR.fchdir, directory)
        act()

    try:
        run_in_thread(work)
    finally:
        os.close(directory)

"""Where the files of unix sockets are, and binding sockets so that their files are there again (unix(7)).

A socket keeps for ever the name that it was bound by: getsockname(2) gives it. Its file may have gone another way: a
relative name begins in a directory that is not told, a file may be renamed or linked into place, removed, or its name
taken over by another socket. The kernel tells the number of the file's inode (UNIX_DIAG_VFS), and by that it is found
in the directory where it was made; root is given the file itself (SIOCUNIXFILE). What is not found has no name.

At a restore a socket is bound by the name that it had, where that can be had for a moment, and its file is brought to
where it was. Until all connections are made it has some name, by which the others reach it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.paths.file_names import is_gone
from torpor.objects.paths.opener import Opener
from torpor.objects.sockets import common
from torpor.probe import forked
from torpor.remote.sys import syscall
from torpor.util.workers import apart

LONGEST = 108
"""sizeof(sun_path)."""
SIOCUNIXFILE = 0x89E0
"""An ioctl that opens the file that a socket is bound to, with O_PATH (include/uapi/linux/un.h; CAP_NET_ADMIN)."""
CLONE_FS, CLONE_NEWUSER = 0x200, 0x10000000
RENAME_NOREPLACE = 1
_MANY = 4096
"""Names of a directory that are looked at."""


class Place(NamedTuple):
    """Where a socket's file is."""

    path: bytes
    """A full path; empty: it has no name."""
    directory: bytes = b""
    """Where a relative name begins."""


def of(raw: bytes) -> bytes:
    """A name as bind() takes it: the zero byte that ends a path is no part of it, an abstract one begins with one."""
    return raw if raw.startswith(b"\0") else raw.rstrip(b"\0")


def printable(name: bytes) -> str:
    """A name as people write it: an abstract one begins with @."""
    text = os.fsdecode(name.rstrip(b"\0"))
    return "@" + text[1:] if text.startswith("\0") else text


def find(name: bytes, inode: int | None, directories: Iterable[bytes], told: bytes) -> Place:
    """Find the file of a socket.

    Args:
        name: that it was bound by.
        inode: the lower half of its number.
        directories: where a relative name may begin.
        told: by which the kernel knows the file: see `told`.
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
    # The name by which the kernel knows the file may be gone while another one has it: so this comes last.
    return Place(told, roots[0] if roots else b"")


def directories(pids: Iterable[int]) -> Iterator[bytes]:
    """Where a relative name of processes may begin: in their current directories, and in those that they began in."""
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


def told(sock: int) -> bytes:
    """The name of a socket's file; empty if it has none any more, or the kernel does not tell, as only root is told."""
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
    """struct sockaddr_un and its length."""
    packed = struct.pack("=H", socket.AF_UNIX) + (name if name.startswith(b"\0") else name + b"\0")
    return packed, len(packed)


def path_of(unix: UnixMessage) -> bytes:
    """Where the file of a socket is to be; empty: nowhere."""
    if unix.moved:
        return unix.path
    return b"" if unix.name.startswith(b"\0") else unix.name


@dataclass
class Bound:
    """Sockets of an image that are bound, until their files are where they were."""

    warnings: list[str]
    _waiting: list[tuple[Opener, bytes, UnixMessage]] = field(default_factory=list)
    """With the name that the file has for now."""
    _made: list[tuple[Opener, bytes]] = field(default_factory=list)
    _folders: list[bytes] = field(default_factory=list)
    """With files that are to have no name."""

    def bind(self, sock: socket.socket, unix: UnixMessage, opener: Opener) -> bytes:
        """Bind a socket as it was; what was left at its place was removed before.

        Returns:
            The name by which it is to be reached for now.
        """
        if unix.name.startswith(b"\0"):
            opener.call(NR.bind, sock.fileno(), *address(unix.name))
            return bytes(unix.name)
        path = path_of(unix)
        if not path:
            return self._bind_nameless(sock, unix, opener)
        home = os.path.dirname(path)
        try:
            at = self._bind_at(sock, unix.name, unix.directory or home, opener)
        except OSError:
            if not unix.moved:
                raise
            at = self._bind_at(sock, _new_name(), home, opener)
            self._warn(unix.name)
        opener.chmod(at, 0o600)
        return self._hide(opener, at, unix) if at != path else self._wait(opener, at, unix)

    def _bind_at(self, sock: socket.socket, name: bytes, directory: bytes, opener: Opener) -> bytes:
        if name.startswith(b"/"):
            opener.call(NR.bind, sock.fileno(), *address(name))
            at = name
        else:
            _within(opener.enter(directory), lambda: opener.call(NR.bind, sock.fileno(), *address(name)))
            at = os.path.normpath(os.path.join(directory, name))
        self._made.append((opener, at))
        return at

    def _bind_nameless(self, sock: socket.socket, unix: UnixMessage, opener: Opener) -> bytes:
        """One whose file is to have no name: a relative one is had in any directory."""
        name = unix.name
        if name.startswith(b"/"):
            with suppress(OSError):  # another one's file has it
                return self._hide(opener, self._bind_at(sock, name, b"", opener), unix)
        folder = os.fsencode(tempfile.mkdtemp(prefix="torpor-"))
        self._folders.append(folder)
        at = os.path.normpath(os.path.join(folder, name.lstrip(b"/")))
        if not name or not at.startswith(folder + b"/") or not _bound_below(folder, at, sock, name):
            self._warn(unix.name)
            name = _new_name()
            at = os.path.join(folder, name)
            _within(_opened(folder), lambda: sock.bind(name))
        return at

    def _hide(self, opener: Opener, at: bytes, unix: UnixMessage) -> bytes:
        """Give a file a name for now that nobody else wants."""
        hidden = os.path.join(os.path.dirname(at), _new_name())
        _rename(opener, at, hidden)
        self._made[-1] = (opener, hidden)
        return self._wait(opener, hidden, unix)

    def _wait(self, opener: Opener, at: bytes, unix: UnixMessage) -> bytes:
        self._waiting.append((opener, at, unix))
        return at

    def _warn(self, name: bytes) -> None:
        # Another one has it by now, or its directory is gone.
        self.warnings.append(f"the unix socket {printable(name)} cannot have its name again, and shows another one")

    def settle(self) -> None:
        """Bring every file to where it was, with its mode and owner: nobody is to be connected any more."""
        for opener, at, unix in self._waiting:
            path = path_of(unix)
            if not path:
                opener.unlink(at)
                continue
            if at != path:
                _rename(opener, at, path)
                self._made.append((opener, path))
            _give(path, unix, opener, self.warnings)
        self._waiting.clear()
        self._remove_folders()

    def remove(self) -> None:
        """Leave no name: the restore has failed."""
        for opener, name in self._made:
            with suppress(OSError):
                opener.unlink(name)
        self._remove_folders()

    def _remove_folders(self) -> None:
        while self._folders:
            shutil.rmtree(self._folders.pop())


def _bound_below(folder: bytes, at: bytes, sock: socket.socket, name: bytes) -> bool:
    """Bind a socket by a name that begins in a directory of our own; one that begins with a slash, by a child whose
    root directory that is. Whether it could be done: to change its root, a user's child needs a user namespace."""
    os.makedirs(os.path.dirname(at), exist_ok=True)
    if not name.startswith(b"/"):
        _within(_opened(folder), lambda: sock.bind(name))
        return True

    def work() -> None:
        if not procfs.is_root():
            syscall(NR.unshare, CLONE_NEWUSER)
        os.chroot(folder)
        sock.bind(name)

    os.waitpid(forked(work), 0)
    return of(common.local_name(sock.fileno())[2:]) == name


def _opened(folder: bytes) -> int:
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def connect(sock: socket.socket, name: bytes) -> None:
    """Connect a socket to one of the tree, with the restorer's own rights, by a name that `Bound.bind` gave."""
    if len(name) < LONGEST or name.startswith(b"\0"):
        sock.connect(name)
        return
    directory = os.open(os.path.dirname(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(b"/proc/self/fd/%d/%s" % (directory, os.path.basename(name)))
    finally:
        os.close(directory)


def _new_name() -> bytes:
    return b".torpor-" + os.urandom(8).hex().encode()


def _rename(opener: Opener, here: bytes, there: bytes) -> None:
    with opener.parent(here) as (old, name), opener.parent(there) as (new, wanted):
        opener.call(NR.renameat2, old, name, new, wanted, RENAME_NOREPLACE)


def _give(path: bytes, unix: UnixMessage, opener: Opener, warnings: list[str]) -> None:
    """Give a socket's file its mode, and its owner where that is another one."""
    found = opener.lstat(path)
    if unix.HasField("owner") and (found.st_uid, found.st_gid) != (unix.owner.uid, unix.owner.gid):
        fd = opener.lookup(path, follow=False)
        try:
            opener.call(NR.chown, b"/proc/self/fd/%d\0" % fd, unix.owner.uid, unix.owner.gid)
        except OSError:
            warnings.append(
                f"the unix socket {printable(path)} is not given to user {unix.owner.uid}, group {unix.owner.gid}"
                " again, whose it was: this takes root"
            )
        finally:
            os.close(fd)
    opener.chmod(path, unix.mode & 0o7777)


def _within(directory: int, act: Callable[[], object]) -> None:
    """Do something in a current directory of its own; closes `directory`. Raises what it raises."""

    def work() -> None:
        syscall(NR.unshare, CLONE_FS)  # of this thread alone
        syscall(NR.fchdir, directory)
        act()

    try:
        apart(work)
    finally:
        os.close(directory)

"""Locks that are files in a directory, for file systems that several hosts share. They need no flock(2).

A lock is an empty file that its holder creates, whose name says all about the holder. The names are unique, so nothing
depends on an exclusive creation; who wants a lock creates its file first, and then lists the directory. Of two who
conflict, at least one therefore sees the other, and gives way. docs/format.md has the rules and why they suffice.

A holder sets the time of its file every `REFRESH` seconds. A lock is dead if its process has ended, which its own host
sees at once. It is also dead if its file looks older than `OLD`, is then watched for `WATCH` seconds, and does not
change: so clocks that differ make no lock dead. A holder that stood still for so long finds its file gone. It must look
for that (`LockFile.confirm`) at the moment that matters.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from torpor.util.workers import Thread

REFRESH: Final = 15.0
"""How often a holder sets the time of its file, in seconds."""
OLD: Final = 300.0
"""A file whose time is further away than this, in seconds, is watched by those who wait for it."""
WATCH: Final = 45.0
"""For how long, in seconds: a holder that lives would have refreshed it about three times."""
PRUNE: Final = "prune"
SPARE: Final = "spare"
"""The name of an empty file that becomes the lock of a prune when there is no room for another file."""

_held: Final[set[str]] = set()
"""The names of the locks that this process holds. A file that it could not remove is not among them."""
_NAME: Final = re.compile(r"([0-9A-Za-z-]+),([a-z2-7]{10}),([0-9]+),([0-9]+),([0-9a-f]{16}),(.+)", re.ASCII)
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""The errors of creating a file when the disk is full or a quota is used up."""


@dataclass(frozen=True)
class LockOwner:
    """Who holds a lock, as its file's name says."""

    what: str
    pid: int
    started: int
    """The start time of its process, in clock ticks since the boot; 0 if /proc did not show it."""
    where: str
    """Its boot, PID namespace and time namespace, as a hash: in the same ones, PIDs and start times can be compared."""
    host: str

    @classmethod
    def parse(cls, name: str) -> LockOwner | None:
        """The holder that a name describes; None for a name of another form."""
        found = _NAME.fullmatch(name)
        return found and cls(found[1], int(found[3]), int(found[4]), found[5], found[6])

    @classmethod
    def own(cls, what: str) -> LockOwner:
        """This process."""
        host = re.sub(r"[^0-9A-Za-z.-]", "-", socket.gethostname())[:64] or "-"
        return cls(what, os.getpid(), _start_time(os.getpid()) or 0, _where(), host)

    def name(self) -> str:
        """A name for a lock of this holder, which no other has."""
        unique = "".join(_LETTERS[byte & 31] for byte in os.urandom(10))
        return f"{self.what},{unique},{self.pid},{self.started},{self.where},{self.host}"

    def has_ended(self) -> bool:
        """Whether its process is known to have ended: False for one that cannot be seen from here."""
        if self.where != _where() or self.pid == os.getpid():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        now = _start_time(self.pid)
        return now is not None and self.started not in (0, now)

    def __str__(self) -> str:
        """Who it is, for a message."""
        return f"process {self.pid} on {self.host}"


class Busy(Exception):
    """Others hold locks that conflict."""

    def __init__(self, holders: Sequence[LockOwner | None]) -> None:
        """Name the holders; None for one whose file's name has another form."""
        super().__init__()
        self.holders = holders


class LockLost(Exception):
    """The lock's file was removed: this process gave no sign of life for so long that others took it for dead."""


class LockFile:
    """A lock that this process holds."""

    def __init__(self, folder: int, what: str) -> None:
        """Create the file in an open directory, which must stay open; `take` says what it is worth. Raises OSError."""
        self.name = LockOwner.own(what).name()
        self._folder = folder
        self._owner = os.getpid()
        self._released = threading.Event()
        self._keeper: Thread | None = None
        _held.add(self.name)
        try:
            self._create(spare=what == PRUNE)
        except BaseException:
            _held.discard(self.name)
            raise

    def _create(self, *, spare: bool) -> None:
        try:
            _create(self.name, self._folder)
        except OSError as error:
            if error.errno not in NO_ROOM or not spare:
                raise
            try:
                os.rename(SPARE, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except FileNotFoundError:
                raise error from None

    def keep(self) -> None:
        """Refresh the file from now on, in a thread. If none can be started, the lock is safe for `OLD` seconds."""
        self._keeper = Thread(self._refresh)
        self._keeper.start()

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH):
            try:
                self.confirm()
            except LockLost:
                return
            except OSError:
                continue  # the server may be away for a while

    def confirm(self) -> None:
        """Refresh the file. Raises LockLost if it is gone, OSError.

        This asks the file's server: what a network file system has cached does not answer it.
        """
        try:
            os.utime(self.name, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            raise LockLost from error

    def release(self) -> None:
        """Remove the file. In a forked child, which holds nothing, this does nothing. Raises OSError."""
        if self._owner != os.getpid():
            return
        self._released.set()
        if self._keeper:
            self._keeper.join()
        _held.discard(self.name)
        with suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._folder)


def make_spare(folder: int) -> None:
    """Create the file that a prune needs when there is no room for another one, if it is missing. Raises OSError."""
    with suppress(FileExistsError):
        _create(SPARE, folder)


def take(
    folder: int, what: str, conflicts: Callable[[str], bool], *, insist: bool = False, patience: float = 0
) -> LockFile:
    """Take a lock in an open directory, and wait for up to `patience` seconds for others to release theirs.

    With a patience, files of dead holders are waited for as long as it takes to know that they are dead (`WATCH`), and
    removed.

    Args:
        folder: the directory, which must stay open as long as the lock is held.
        what: what the lock is for: ASCII letters, digits and hyphens.
        conflicts: whether a lock for something, which the name's beginning says, conflicts with this one.
        insist: wait with one's own file in place, so that others give way; without, give way. Of two that insist on the
            same thing, one gives way.
        patience: in seconds; 0 to look once.

    Raises:
        Busy: others hold locks that conflict.
        OSError: the file cannot be created, or the directory not be listed.
    """
    others = _Others(folder, conflicts)
    deadline = time.monotonic() + patience
    pause = 0.001
    while True:
        lock = None
        try:
            if (insist and patience) or not others.names():
                lock = LockFile(folder, what)
                while rivals := others.names(lock.name):
                    if not insist or any(name.split(",")[0] == what and name < lock.name for name in rivals):
                        break
                    others.wait(rivals, deadline, patience, pause)
                    pause = min(2 * pause, 0.1)
                else:
                    lock.keep()
                    return lock
        except BaseException:
            if lock:
                lock.release()
            raise
        if lock:
            lock.release()
        others.wait(others.names(), deadline, patience, pause)
        pause = min(2 * pause, 0.1)


@contextmanager
def claimed(directory: str | os.PathLike[str], what: str, patience: float) -> Iterator[None]:
    """Hold a lock in a directory, which is made if it is missing, against others that are for the same thing.

    Raises:
        Busy: another process has it, and keeps it for `patience` seconds.
        OSError: the directory or a file in it cannot be made.
    """
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        lock = take(folder, what, lambda other: other == what, insist=True, patience=patience)
        try:
            yield
        finally:
            with suppress(OSError):  # others see that this process holds it no longer, or in minutes
                lock.release()
    finally:
        os.close(folder)


@dataclass
class _Sign:
    """What was seen of a file that looks old."""

    state: tuple[int, int]
    since: float
    """When it was first seen so, by the monotonic clock."""
    lives: bool = False
    """It has changed meanwhile, so its holder lives: only its clock differs."""


@dataclass
class _Others:
    """The locks in a directory that conflict with one that is wanted."""

    folder: int
    conflicts: Callable[[str], bool]
    _old: dict[str, _Sign] = field(default_factory=dict)
    """Files that looked old, by their names."""

    def names(self, own: str = "") -> list[str]:
        """Their names, without those that are dead, whose files are removed."""
        found = []
        for name in os.listdir(self.folder):
            # NFS renames an open file that is removed, to .nfs...
            if name in (own, SPARE) or name.startswith(".") or not self.conflicts(name.split(",")[0]):
                continue
            if _has_ended(name) or self._is_stale(name):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.folder)
            else:
                found.append(name)
        return found

    def _is_stale(self, name: str) -> bool:
        state = self._state(name)
        if state is None:
            return False  # it is about to be removed
        sign = self._old.get(name)
        if sign is None:
            if abs(time.time() - state[1] / 1e9) > OLD:
                self._old[name] = _Sign(state, time.monotonic())
            return False
        if sign.state != state:
            sign.state, sign.lives = state, True
        return not sign.lives and time.monotonic() - sign.since > WATCH

    def _state(self, name: str) -> tuple[int, int] | None:
        """What a refresh changes. For opening the file, NFS asks the server; stat(2) may show what it has cached."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status.st_ino, status.st_mtime_ns

    def wait(self, names: Sequence[str], deadline: float, patience: float, pause: float) -> None:
        """Wait a moment for these. Raises Busy if there is no time left, unless all of them are being watched."""
        if names and time.monotonic() >= deadline:
            watched = [sign for name in names if (sign := self._old.get(name)) and not sign.lives]
            if not patience or len(watched) < len(names):
                raise Busy([LockOwner.parse(name) for name in names])
        time.sleep(pause)


def _has_ended(name: str) -> bool:
    """Whether the holder of a lock is known to have ended, or to be this process, which holds it no longer."""
    holder = LockOwner.parse(name)
    if holder and holder.pid == os.getpid() and holder == LockOwner.own(holder.what):
        return name not in _held
    return holder is not None and holder.has_ended()


def _create(name: str, folder: int) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))


def _where() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        words = [file.read()]
    for kind in ("pid", "time"):
        with suppress(FileNotFoundError):  # a kernel without such namespaces
            words.append(os.readlink(f"/proc/self/ns/{kind}"))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _start_time(pid: int) -> int | None:
    """When a process started, by /proc/PID/stat; None if that does not show it, as under hidepid.

    A process that has ended and was not waited for has no start time that another one has: -1.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None  # this /proc is that of another PID namespace
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return -1 if words[0] in (b"Z", b"X") else int(words[19])

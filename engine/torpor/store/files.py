"""Files in a store: opened step by step without following links, checked, fully written, synced, locked.

Every OSError that leaves this package becomes a StoreError that names the store, the cause and the next step.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from torpor.errors import NotPermitted, StoreError
from torpor.util.lock_files import NO_ROOM, PRUNE, Busy, LockFile, LockLost, make_spare, take
from torpor.util.sizes import readable

PAGE: Final = 4096
"""Alignment of blocks in packs, in bytes: a constant of the format, not the host's page size."""

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_WRITE: Final = 0x7FFFF000  # the most that one call transfers: write(2), NOTES
MAX_PIECES: Final = os.sysconf("SC_IOV_MAX")
_SYNC_FILE_RANGE_WRITE: Final = 2
LOCK_PATIENCE: Final = 60.0
"""How long a saver or reader waits for a prune to end, in seconds."""
GATE_PATIENCE: Final = 5.0
"""How long a prune waits for savers and readers to end, in seconds. New ones wait until the prune is done."""

_sync_file_range = ctypes.CDLL(None).sync_file_range  # os lacks it
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_ADVICE: Final = {
    errno.ENOSPC: "make room with `torpor prune`, or give another store with --store",
    errno.EDQUOT: "your quota is used up: make room with `torpor prune`, or give another store with --store",
    errno.EFBIG: "a limit on the size of files is in the way: see `ulimit -f`",
    errno.EROFS: "the file system is read-only: give another store with --store",
    errno.EIO: "the storage reports a fault: see the host's kernel log, and give another store with --store",
    errno.ESTALE: "the file server no longer knows the store: mount it again",
    errno.EACCES: "give a store that belongs to you with --store",
    errno.EPERM: "give a store that belongs to you with --store",
    errno.EMFILE: "raise the limit on open files: see `ulimit -n`",
    errno.ENOENT: "a part of the store is missing, or has been removed: `torpor verify --all` shows what is intact",
}


@contextlib.contextmanager
def as_store_errors(store: str, doing: str) -> Iterator[None]:
    """Turn an OSError from the block into a StoreError with advice.

    Args:
        store: the directory of the store, or a path in it.
        doing: what failed, as in "cannot write the pack X".

    Raises:
        StoreError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        raise store_error(store, doing, error) from error


def store_error(store: str, doing: str, error: OSError) -> StoreError:
    """The StoreError for an OSError; if the disk is full, it says how much space is free."""
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            room = os.statvfs(store)
            why += f" ({readable(room.f_bavail * room.f_frsize)} free)"
    return StoreError(f"store {store}: {doing}: {why}", advice=_ADVICE.get(error.errno or 0, ""))


def check_owner(fd: int, name: str) -> os.stat_result:
    """Raise NotPermitted if a file belongs to another user (root included) or if others may write it."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise NotPermitted(
            f"{name} belongs to uid {status.st_uid}, and you are uid {os.geteuid()}",
            advice="an image is code that runs as the user who wakes it: use a store of your own",
        )
    if status.st_mode & 0o022:
        raise NotPermitted(
            f"{name} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            advice=f"if nobody else wrote there: chmod go-w {name}",
        )
    return status


def open_file(name: str, folder: int, shown: str, mode: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
    """Open a regular file of this user, by its plain name in an open folder.

    Raises OSError (ELOOP for a symbolic link, EINVAL if it is not a regular file) and NotPermitted.
    """
    # O_NONBLOCK: opening must not hang on a FIFO that somebody planted
    fd = os.open(name, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = check_owner(fd, shown)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def create_file(name: str, folder: int) -> int:
    """Create a new private file for writing."""
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)


def make_directories(path: str) -> None:
    """Create a private directory and its parents, each synced to disk before the next.

    An existing directory of this user is synced too: another saver may have created it a moment ago, or have been
    killed before it could sync.
    """
    made = os.path.isdir(path)
    if made and (os.path.ismount(path) or os.stat(path).st_uid != os.geteuid()):
        return
    above = os.path.dirname(path)
    make_directories(above)
    if not made:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
    try:
        fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if made:
            return  # often /home: a user who may not list a directory has not created anything in it
        raise
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write all pieces, one after the other, from `offset` on. Continues after short writes."""
    rest = [piece for piece in pieces if piece.nbytes]
    while rest:
        batch, size = [], 0
        for piece in rest[:MAX_PIECES]:
            room = MAX_WRITE - size
            if not room:
                break
            batch.append(piece[:room])
            size += batch[-1].nbytes
        done = os.pwritev(fd, batch, offset)
        if not done:
            raise OSError(errno.EIO, "a write wrote nothing")
        offset += done
        while done and done >= rest[0].nbytes:
            done -= rest.pop(0).nbytes
        if done:
            rest[0] = rest[0][done:]


def begin_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to write this part of a file to disk, so that there is less left at the fsync.

    Not every file system does; whatever fails, fsync(2) says it.
    """
    _sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def read_exactly(fd: int, buffer: memoryview, offset: int) -> int:
    """Read until the buffer is full or the file ends. Returns the number of bytes read."""
    done = 0
    while done < buffer.nbytes:
        got = os.preadv(fd, [buffer[done : done + MAX_WRITE]], offset + done)
        if not got:
            break
        done += got
    return done


_CACHED = ("fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.s3fs")
"""File systems that may show a directory as it was minutes ago, by their manuals (rclone: --dir-cache-time)."""
_UNCHANGEABLE: Final = (errno.EROFS, errno.EACCES, *NO_ROOM)
"""Errors after which a reader does without a lock: a job must also wake from a full store, or a read-only mount."""
_USES = {"save": "a checkpoint", "read": "a restore or another reader", PRUNE: "a prune"}


def _check_directories_are_current(fd: int, store: str) -> None:
    """Raise StoreError on a file system on which one host may not see for minutes what another one has created.

    Not by `torpor.procfs`: the store does not import modules about live processes (tests/unit/house/test_floors.py).
    """
    with open(f"/proc/self/fdinfo/{fd}") as info:
        mount = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as mounts:
        for line in mounts:
            if line.split(" ", 1)[0] == mount and (kind := caches_directories(line)):
                raise StoreError(
                    f"store {store}: a host may not see for minutes what another one does on {kind}",
                    advice="no pack is removed there, because a checkpoint may need it; use a store on a file system "
                    "whose directories are the same on all hosts at once",
                )


def caches_directories(line: str) -> str:
    """The type of a mount on which directories may be out of date for minutes, by its line of mountinfo; else empty."""
    kind = line.rsplit(" - ", 1)[1].split(" ", 1)[0]
    return kind if kind in _CACHED else ""


def lock_shared(folder: int, store: str, what: str) -> LockFile | None:
    """Lock the store, beside others that save and read. Returns None for a reader that cannot create a file there.

    If another host can, and prunes, such a reader finds packs missing or blocks changed, and says so. Raises StoreError
    if a prune has the store for more than `LOCK_PATIENCE` seconds.
    """
    try:
        return take(folder, what, lambda other: other == PRUNE, patience=LOCK_PATIENCE)
    except Busy as busy:
        raise StoreError(
            f"store {store} is busy: a prune holds its lock for more than {LOCK_PATIENCE:.0f} s{_who(busy)}",
            advice="wait for the prune to end, or give another store with --store",
        ) from None
    except OSError as error:
        if what == "read" and error.errno in _UNCHANGEABLE:
            return None
        raise


def lock_exclusive(folder: int, store: str, patience: float) -> LockFile:
    """Lock the store for a prune. Raises StoreError if it is busy.

    Overlapping savers and readers may hold the lock without end. With `patience`, in seconds, this waits for those that
    hold it, and new ones wait; with 0 it takes the lock at once or fails.
    """
    _check_directories_are_current(folder, store)
    try:
        return take(folder, PRUNE, lambda _: True, insist=True, patience=patience)
    except Busy as busy:
        raise StoreError(
            f"store {store} is busy: {_USES.get(_first(busy), 'another program')} uses it{_who(busy)}",
            advice="try again when it has ended",
        ) from None


def _first(busy: Busy) -> str:
    holder = busy.holders[0]
    return holder.what if holder else ""


def _who(busy: Busy) -> str:
    """Who holds the lock, in parentheses."""
    more = len(busy.holders) - 1
    shown = str(busy.holders[0] or "of another version")
    return f" ({shown}{f' and {more} more' if more else ''})"


_OURS: Final = {"locks", "snapshots", "packs", "slurm", "jupyter", "lost+found"}
"""What may lie in a directory that is to become a store: Torpor's own folders, and what mkfs makes."""


def check_unused(path: str) -> None:
    """Raise StoreError if a directory has other files: it is a home directory, say, and must not become a store."""
    with as_store_errors(path, "cannot read it"):
        others = sorted(set(os.listdir(path)) - _OURS)
    if others:
        raise StoreError(
            f"{path} is not a store, and is not empty (it has {others[0]!r})",
            advice="name a new or an empty directory by --store or $TORPOR_STORE, or run `torpor init --store` on it",
        )


class Place:
    """An open store: its folders, and its lock for one reader, writer or prune."""

    def __init__(
        self, path: str, *, create: bool = False, use: str = "", exclusive: bool = False, patience: float = 0
    ) -> None:
        """Open the store at `path`; with `create` make it first. `patience` is for the exclusive lock, in seconds.

        `use` is "save" or "read" for those that need that no pack is removed meanwhile; without, there is no lock.

        Raises FileNotFoundError if there is no store, NotPermitted if other users can write it, and StoreError for
        everything else.
        """
        self.path = path
        self.root = self.snapshots = self.packs = self._locks = -1
        self._lock: LockFile | None = None
        self._exclusive = exclusive
        try:
            if create and not os.path.isdir(os.path.join(path, "snapshots")):
                make_directories(path)
            self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            check_owner(self.root, path)
            self.snapshots = self._folder("snapshots", create)
            self.packs = self._folder("packs", create)
            if create:
                self._open_locks()
                os.fsync(self.root)  # another saver may have created the folders and been killed before it could sync
            if exclusive:
                self._open_locks()
                self._lock = lock_exclusive(self._locks, path, patience)
            elif use:
                self._lock = self._lock_for(use)
        except OSError as error:
            self.close()
            if error.errno == errno.ENOENT and not create:
                raise
            raise store_error(path, "cannot open it", error) from error
        except BaseException:
            self.close()
            raise

    def _folder(self, name: str, create: bool) -> int:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.root)
        fd = os.open(name, DIRECTORY, dir_fd=self.root)
        try:
            check_owner(fd, os.path.join(self.path, name))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock_for(self, use: str) -> LockFile | None:
        try:
            self._open_locks()
        except OSError as error:
            if use != "read" or error.errno not in _UNCHANGEABLE:
                raise
            return None
        return lock_shared(self._locks, self.path, use)

    def _open_locks(self) -> None:
        if self._locks >= 0:
            return
        try:
            self._locks = self._folder("locks", create=False)
        except FileNotFoundError:
            self._locks = self._folder("locks", create=True)
            with contextlib.suppress(OSError):
                make_spare(self._locks)

    def confirm(self) -> None:
        """Check that the lock still holds: no prune has run, or for a prune no saver, since this process took it.

        Raises StoreError if others took this process for dead, because it stood still for minutes, and OSError.
        """
        try:
            if self._lock:
                self._lock.confirm()
        except LockLost:
            raise StoreError(
                f"store {self.path}: another process removed this one's lock, because it stood still for minutes",
                advice="try again; nothing of the store is damaged",
            ) from None

    def close(self) -> None:
        """Release the lock and close the folders. Errors do not matter, since nothing was written through these."""
        if self._lock:
            with contextlib.suppress(OSError):
                self._lock.release()
            if self._exclusive:
                with contextlib.suppress(OSError):
                    make_spare(self._locks)  # this prune may have used it up, and has made room
        for fd in (self._locks, self.packs, self.snapshots, self.root):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.root = self.snapshots = self.packs = self._locks = -1
        self._lock = None

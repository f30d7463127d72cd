"""Files beneath a store: opened step by step without following links, checked, written whole, synced, locked.

Every OSError that leaves this package is a StoreError that names the store, the cause and the next step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

from torpor.errors import NotPermitted, StoreError

PAGE: Final = 4096
"""Alignment of blocks in packs, bytes: a constant of the format, not the host's page size."""

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_WRITE: Final = 0x7FFFF000  # the most that one call transfers, write(2), NOTES
MAX_PIECES: Final = os.sysconf("SC_IOV_MAX")
LOCK_PATIENCE: Final = 60.0
"""Seconds that a saver or reader waits for a prune to end."""
GATE_PATIENCE: Final = 5.0
"""Seconds that a prune waits for savers and readers to end. Those that come meanwhile wait behind it."""

_NO_FLOCK: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
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
    errno.ENOENT: "another process removed it: look at `torpor ls`",
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
    """Give the words for `error`; when the disk is full, with how much is free."""
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            room = os.statvfs(store)
            why += f" ({readable(room.f_bavail * room.f_frsize)} free)"
    return StoreError(f"store {store}: {doing}: {why}", advice=_ADVICE.get(error.errno or 0, ""))


def readable(size: int) -> str:
    """Give a number of bytes for people: ``4.0 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def check_owner(fd: int, name: str) -> os.stat_result:
    """Refuse what belongs to another user, root included, or what others may write: raise NotPermitted."""
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
    """Open a regular file of this user, by one plain name in an open folder.

    Raises OSError (ELOOP for a link) and NotPermitted. Whether it is a regular file is told by EINVAL.
    """
    # O_NONBLOCK: opening a FIFO that somebody planted must not hang
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
    """Make a private directory with those above it, each on disk before the next.

    One of this user that is there already may be another saver's, made a moment ago or before it was killed: it may not
    be on disk yet.
    """
    made = os.path.isdir(path)
    if made and (os.path.ismount(path) or os.stat(path).st_uid != os.geteuid()):
        return
    above = os.path.dirname(path)
    make_directories(above)
    if not made:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if made:
            return  # often /home: whoever may not list it has not made anything there
        raise
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write all pieces, one after the other, at `offset`; short writes are continued."""
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


def read_exactly(fd: int, buffer: memoryview, offset: int) -> int:
    """Read until the buffer is full or the file ends; return the bytes read."""
    done = 0
    while done < buffer.nbytes:
        got = os.preadv(fd, [buffer[done : done + MAX_WRITE]], offset + done)
        if not got:
            break
        done += got
    return done


def _locks_within_host(fd: int) -> bool:
    """Tell whether flock on `fd`'s mount is seen by this host only, by the mount's options."""
    with open(f"/proc/self/fdinfo/{fd}") as info:
        mount = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as mounts:
        return any(mount_locks_locally(line) for line in mounts if line.split(" ", 1)[0] == mount)


def mount_locks_locally(line: str) -> bool:
    """Tell from a line of /proc/PID/mountinfo whether flock there works within one host only.

    The options are those of nfs(5) and of Lustre's client mount.
    """
    kind, _, options = line.rsplit(" - ", 1)[1].rstrip("\n").split(" ", 2)
    words = set(options.split(","))
    if kind in ("nfs", "nfs4"):
        return bool(words & {"nolock", "local_lock=all", "local_lock=flock"})
    return kind == "lustre" and "localflock" in words


def lock_shared(root: int, store: str) -> int | None:
    """Take the store's lock with other savers and readers; None where flock does not work.

    On the way it passes through the gate, which a prune that waits for its turn holds shut.
    Raises StoreError when a prune holds the lock for more than `LOCK_PATIENCE` seconds.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | flags, 0o600, dir_fd=root)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        try:
            fd = os.open("lock", os.O_RDONLY | flags, dir_fd=root)
        except FileNotFoundError:
            return None
    deadline = time.monotonic() + LOCK_PATIENCE
    pause = 0.001
    while True:
        try:
            with _through_gate(root, fcntl.LOCK_SH):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise StoreError(
                    f"store {store} is busy: a prune holds its lock for more than {LOCK_PATIENCE:.0f} s",
                    advice="wait for the prune to end, or give another store with --store",
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        except OSError as error:
            os.close(fd)
            if error.errno in _NO_FLOCK:
                return None
            raise


@contextlib.contextmanager
def _through_gate(root: int, how: int) -> Iterator[None]:
    """Hold the gate in the block. Raises BlockingIOError: it is shut. Where it cannot be had there is none."""
    try:
        gate = os.open("gate", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        yield  # a store that is only read has no prune
        return
    try:
        fcntl.flock(gate, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(gate)


def lock_exclusive(root: int, store: str, patience: float) -> int:
    """Take the store's lock alone. Raises StoreError: busy, or locks do not work.

    Others may hold it without end, each a little later than the one before. With `patience`, in seconds, it waits for
    those that hold it now, and keeps the gate shut meanwhile; with 0 it takes the lock at once or not at all.
    """
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        if _locks_within_host(fd):
            raise StoreError(
                f"store {store}: its file system is mounted so that locks are not seen by other hosts",
                advice="no pack is removed there; mount it with the server's locks (local_lock=none, flock)",
            )
        _in_turn(root, fd, patience)
    except BlockingIOError:
        os.close(fd)
        raise StoreError(
            f"store {store} is busy: a checkpoint, a restore or another prune uses it",
            advice="try again when it has ended",
        ) from None
    except OSError as error:
        os.close(fd)
        if error.errno in _NO_FLOCK:
            raise StoreError(
                f"store {store}: its file system has no flock ({os.strerror(error.errno)})",
                advice="no pack is removed without it, for a saver may need it; Lustre has it with -o flock",
            ) from error
        raise
    except BaseException:
        os.close(fd)
        raise
    return fd


def _in_turn(root: int, fd: int, patience: float) -> None:
    """Take a lock alone. Raises BlockingIOError: others have it still, after `patience` seconds."""
    deadline = time.monotonic() + patience
    if not patience:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    while True:
        with contextlib.suppress(BlockingIOError), _through_gate(root, fcntl.LOCK_EX):
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.001)
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        time.sleep(0.001)


class Place:
    """An open store: its folders and its lock, for the life of one reader, writer or prune."""

    def __init__(self, path: str, *, create: bool = False, exclusive: bool = False, patience: float = 0) -> None:
        """Open the store at `path`, and make it first when `create` is set; `patience` is for the exclusive lock.

        Raises FileNotFoundError when there is no store, NotPermitted when it is not this user's alone, and
        StoreError for everything else.
        """
        self.path = path
        self.root = self.snapshots = self.packs = -1
        self._lock: int | None = None
        try:
            if create and not os.path.isdir(os.path.join(path, "snapshots")):
                make_directories(path)
            self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            check_owner(self.root, path)
            self.snapshots = self._folder("snapshots", create)
            self.packs = self._folder("packs", create)
            if create:
                os.fsync(self.root)  # another saver may have made the folders, and been killed then
            self._lock = lock_exclusive(self.root, path, patience) if exclusive else lock_shared(self.root, path)
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

    def close(self) -> None:
        """Let the lock and the folders go. Nothing was written through them, so that no error can matter."""
        if self._lock is not None:
            # a forked child may hold the same open file, so that closing alone would not unlock
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        for fd in (self._lock, self.packs, self.snapshots, self.root):
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.root = self.snapshots = self.packs = -1
        self._lock = None

"""Files without a name, and locks of every kind: whose they are, what they cover, that they are still in the way."""

import ctypes
import fcntl
import mmap
import os
import struct
import tempfile
from collections.abc import Callable

from ready import HERE, expect, judge, ready_and_wait, same

LIBC = ctypes.CDLL(None)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
LOCK_EX, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_SH
OFD_SETLK = 37
FLOCK = struct.Struct("=hhxxxxqqixxxx")


def refusals(name: str, attempt: Callable[[int, bool], None]) -> tuple[bool, bool]:
    """Whether a lock is denied to another process: one for it alone, and a shared one."""
    child = os.fork()
    if child == 0:
        denied = 0
        fd = os.open(HERE / name, os.O_RDWR)
        for bit, alone in ((1, True), (2, False)):
            try:
                attempt(fd, alone)
            except BlockingIOError:
                denied |= bit
        os._exit(denied)
    denied = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return bool(denied & 1), bool(denied & 2)


def locked(name: str, start: int = 0, length: int = 0) -> tuple[bool, bool]:
    def attempt(fd: int, alone: bool) -> None:
        fcntl.fcntl(fd, OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK if alone else fcntl.F_RDLCK, 0, start, length, 0))

    return refusals(name, attempt)


def flocked(name: str) -> tuple[bool, bool]:
    return refusals(
        name, lambda fd, alone: fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    )


def owner(name: str) -> int:
    """Who has locked a file by flock, as the kernel tells it."""
    inode = os.stat(HERE / name).st_ino
    lines = (line.split() for line in open("/proc/locks"))  # noqa: SIM115
    return next((int(line[4]) for line in lines if line[1] == "FLOCK" and line[5].endswith(f":{inode}")), -1)


def make(name: str) -> int:
    return os.open(HERE / name, os.O_RDWR | os.O_CREAT)


def main() -> None:
    nameless = tempfile.TemporaryFile(dir=HERE, buffering=0)  # noqa: SIM115
    nameless.write(b"begin")
    nameless.seek(100 << 20)
    nameless.write(b"end")
    nameless.seek(2)
    gone = make("gone")
    os.write(gone, b"x" * 5000)
    reader = os.open(HERE / "gone", os.O_RDONLY)
    writer = os.open(HERE / "gone", os.O_WRONLY | os.O_APPEND)
    os.unlink(HERE / "gone")
    mapped = mmap.mmap(gone, 5000)
    temporary = os.open(HERE, os.O_TMPFILE | os.O_RDWR)
    os.write(temporary, b"never had a name")

    alone, together = make("alone"), make("together")
    fcntl.flock(alone, fcntl.LOCK_EX)
    fcntl.flock(together, fcntl.LOCK_SH)
    own = make("own")
    fcntl.fcntl(own, OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, 0, 10, 5, 0))
    fcntl.fcntl(own, OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, 0, 100, 0, 0))
    parts = make("parts")
    copy = os.dup(parts)
    fcntl.lockf(parts, fcntl.LOCK_EX, 10, 0)
    fcntl.lockf(parts, fcntl.LOCK_SH, 10, 20)
    fcntl.lockf(nameless, fcntl.LOCK_EX)
    inherited = make("inherited")
    ready, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        fcntl.lockf(parts, fcntl.LOCK_EX, 10, 40)
        fcntl.flock(inherited, fcntl.LOCK_EX)
        os.write(ready[1], b"!")
        os.read(told[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    ready_and_wait()

    same(nameless.tell(), 2, "the position in a file without a name")
    same(nameless.read(6), b"gin\0\0\0", "the beginning of a file without a name")
    same(os.pread(nameless.fileno(), 10, 100 << 20), b"end", "its end")
    expect(os.fstat(nameless.fileno()).st_blocks < 1000, "a hole was filled")
    mapped[0:3] = b"abc"
    os.write(writer, b"more")
    same(os.pread(reader, 4, 0), b"abcx", "what a mapping of a deleted file writes")
    same(os.pread(gone, 10, 5000), b"more", "what another descriptor of it writes")
    same(os.pread(temporary, 100, 0), b"never had a name", "a file that never had one")
    linked = LIBC.linkat(AT_FDCWD, b"/proc/self/fd/%d" % temporary, AT_FDCWD, bytes(HERE / "named"), AT_SYMLINK_FOLLOW)
    same((linked, (HERE / "named").read_bytes()), (0, b"never had a name"), "a name that it gets at last")
    os.unlink(HERE / "named")

    same(flocked("alone"), (True, True), "a lock on a file")
    same((owner("alone"), owner("inherited")), (os.getpid(), child), "who locked a file")
    same(flocked("inherited"), (True, True), "a lock that the child took, of a description that its parent has, too")
    same(flocked("together"), (True, False), "a shared lock on a file")
    same((locked("own", 10, 5), locked("own", 15, 80)), ((True, True), (False, False)), "a description's lock")
    same(locked("own", 1000, 1), (True, False), "a description's shared lock")
    same((locked("parts", 0, 10), locked("parts", 10, 10)), ((True, True), (False, False)), "a process's lock")
    same(locked("parts", 20, 10), (True, False), "a process's shared lock")
    same(locked("parts", 40, 10), (True, True), "the child's lock")
    os.write(told[1], b"!")
    same(os.waitpid(child, 0), (child, 0), "the child")
    same(locked("parts", 40, 10), (False, False), "the child's lock after its end")
    os.close(copy)
    same(locked("parts"), (False, False), "a process's locks after it closed the file")
    fcntl.flock(alone, fcntl.LOCK_UN)
    os.close(own)
    same((flocked("alone"), locked("own")), ((False, False), (False, False)), "locks that were given up")


judge(main)

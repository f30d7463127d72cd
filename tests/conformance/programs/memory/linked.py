"""Mapped files that have lost the name under which they were mapped, and have another one in another directory."""

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

SIZE = 2 * mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def mapped(fd: int, flags: int) -> int:
    """The address of a mapping. Python's own would keep a descriptor."""
    address = LIBC.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return int(address)


def moved(first: Path, last: Path) -> int:
    """A file that has one name after the other. Returns a descriptor."""
    last.parent.mkdir(exist_ok=True)
    first.write_bytes(b"A" * SIZE)
    return os.open(first, os.O_RDWR)


def main() -> None:
    own = Path(tempfile.mkdtemp(prefix="torpor-test-", dir="/dev/shm"))
    names = {
        "in another directory": (HERE / "one", HERE / "folder" / "two"),
        "open too": (HERE / "three", HERE / "other" / "four"),
        "in /dev/shm": (own.with_suffix(".tmp"), own / "five"),
    }
    opened, shared = {}, {}
    try:
        for what, (first, last) in names.items():
            fd = moved(first, last)
            shared[what] = mapped(fd, mmap.MAP_SHARED)
            if what == "open too":
                opened[what] = fd
                private = mapped(fd, mmap.MAP_PRIVATE)
            else:
                os.close(fd)
            os.link(first, last)
            first.unlink()
        ctypes.memmove(private + mmap.PAGESIZE, b"mine", 4)
        first, last = HERE / "six", HERE / "private" / "seven"
        fd = moved(first, last)
        alone = mapped(fd, mmap.MAP_PRIVATE)
        os.close(fd)
        os.link(first, last)
        first.unlink()
        ready_and_wait()
        with last.open("r+b") as file:
            file.write(b"by others")
        same(ctypes.string_at(alone, 9), b"by others", "what the private mapping without a descriptor shows")
        for what, (_, last) in names.items():
            ctypes.memmove(shared[what], what.encode(), len(what))
            same(last.read_bytes()[: len(what)], what.encode(), f"the file {what}")
        what = "open too"
        same(os.pread(opened[what], len(what), 0), what.encode(), "what its descriptor shows")
        same(ctypes.string_at(private, len(what)), what.encode(), "what the private mapping shows")
        same(ctypes.string_at(private + mmap.PAGESIZE, 4), b"mine", "the private page")
        same(os.stat(names[what][1]).st_ino, os.fstat(opened[what]).st_ino, "the open file")
    finally:
        (own / "five").unlink(missing_ok=True)
        own.rmdir()


judge(main)

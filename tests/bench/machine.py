"""What the machine itself can do, measured in the same run: memory, disk, fork and page faults."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

_CHUNK = 4 << 20
_MADV_POPULATE_WRITE = 23  # 5.14


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def filled(size: int) -> mmap.mmap:
    """Anonymous memory of random bytes, 4 KiB pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    piece = os.urandom(_CHUNK)
    for start in range(0, size, _CHUNK):
        memory[start : start + _CHUNK] = piece
    return memory


def copy_seconds(size: int) -> float:
    """memcpy between buffers that are there already."""
    source, target = memoryview(bytearray(_CHUNK * 16)), memoryview(bytearray(_CHUNK * 16))

    def copy() -> None:
        for _ in range(size // len(source)):
            target[:] = source

    return seconds(copy)


def write_seconds(folder: Path, size: int) -> float:
    """A plain write of random bytes to a new file, with one fsync at its end."""
    path = folder / "plain"
    piece = os.urandom(_CHUNK)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        for _ in range(size // _CHUNK):
            os.write(fd, piece)
        os.fsync(fd)
        os.close(fd)

    try:
        return seconds(write)
    finally:
        path.unlink()


def fork_seconds(memory: mmap.mmap) -> float:
    """fork of this process, with what it holds."""
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    taken = time.perf_counter() - begin
    os.waitpid(pid, 0)
    return taken


def populate_seconds(size: int) -> float:
    """Page faults of fresh memory, as the kernel does them at once (MADV_POPULATE_WRITE)."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        return seconds(lambda: memory.madvise(_MADV_POPULATE_WRITE))

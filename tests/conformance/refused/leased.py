"""Leases on a file without a name and on one that is mapped: to look at what they hold would break them."""

import ctypes
import fcntl
import mmap
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same

F_SETLEASE, F_GETLEASE = 1024, 1025
LIBC = ctypes.CDLL(None)  # the module mmap duplicates the descriptor


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    gone = os.open(HERE / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(HERE / "gone")
    os.write(gone, b"content")
    fcntl.fcntl(gone, F_SETLEASE, fcntl.F_WRLCK)
    there = os.open(HERE / "mapped", os.O_RDWR | os.O_CREAT)
    os.write(there, b"content")
    LIBC.mmap(None, 7, mmap.PROT_READ, mmap.MAP_PRIVATE, there, ctypes.c_long(0))
    fcntl.fcntl(there, F_SETLEASE, fcntl.F_WRLCK)
    (HERE / "numbers").write_text(f"{gone} {there}")
    ready_and_wait()
    same([fcntl.fcntl(fd, F_GETLEASE) for fd in (gone, there)], [fcntl.F_WRLCK] * 2, "the leases")
    same(signal.sigpending() & {signal.SIGIO}, set(), "whoever has a lease was told of a breach")


judge(main)

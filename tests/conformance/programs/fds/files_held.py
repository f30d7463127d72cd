"""Files that are leased, whose name was given to another one, and with a hole of a terabyte."""

import fcntl
import os
import signal

from ready import HERE, expect, judge, ready_and_wait, same

GETSIG, SETSIG = 11, 10
LARGE = 1 << 40


def opened_by_another(name: str, flags: int) -> int:
    """Open a file in another process, which must not wait."""
    child = os.fork()
    if child == 0:
        try:
            os.open(HERE / name, flags | os.O_NONBLOCK)
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    told: list[int] = []
    for number in (signal.SIGIO, signal.SIGRTMIN + 3):
        signal.signal(number, lambda number, _: told.append(number))
    reading = os.open(HERE / "read", os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(reading, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    writing = os.open(HERE / "written", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(writing, SETSIG, signal.SIGRTMIN + 3)
    fcntl.fcntl(writing, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    copy = os.dup(writing)

    replaced = os.open(HERE / "replaced", os.O_RDWR | os.O_CREAT)
    os.write(replaced, b"old")
    (HERE / "new").write_text("new")
    (HERE / "new").rename(HERE / "replaced")
    large = os.open(HERE / "large", os.O_RDWR | os.O_CREAT)
    os.ftruncate(large, LARGE)
    os.lseek(large, LARGE - 5, os.SEEK_SET)
    ready_and_wait()

    same(fcntl.fcntl(reading, fcntl.F_GETLEASE), fcntl.F_RDLCK, "the lease for reading")
    same(fcntl.fcntl(writing, fcntl.F_GETLEASE), fcntl.F_WRLCK, "the lease for writing")
    same((fcntl.fcntl(copy, GETSIG), fcntl.fcntl(reading, GETSIG)), (signal.SIGRTMIN + 3, 0), "the leases' signals")
    same((opened_by_another("read", os.O_RDONLY), told), (0, []), "a reader of what is leased for reading")
    same(opened_by_another("read", os.O_WRONLY), 1, "a writer of it")
    same(opened_by_another("written", os.O_RDONLY), 1, "a reader of what is leased for writing")
    same(told, [signal.SIGIO, signal.SIGRTMIN + 3], "what was told of them")
    fcntl.fcntl(reading, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    same(opened_by_another("read", os.O_WRONLY), 0, "a writer when the lease is given up")

    same(os.pread(replaced, 3, 0), b"old", "a replaced file")
    same((HERE / "replaced").read_text(), "new", "what has its name")
    os.write(large, b"end")
    expect(os.fstat(large).st_blocks < 1000, "a hole was filled")
    same(os.pread(large, 10, LARGE - 5), b"end\0\0", "the end of a large file")


judge(main)

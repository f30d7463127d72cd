"""The status flags of every kind of description, as fcntl(F_GETFL) tells them: those of open() and those of F_SETFL."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

MODES = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
AT_OPEN = (0, os.O_SYNC, os.O_DSYNC, os.O_APPEND, os.O_NONBLOCK, os.O_NOATIME, os.O_DIRECT, os.O_NOFOLLOW)
LATER = (os.O_APPEND, os.O_NONBLOCK, os.O_NOATIME, os.O_DIRECT)
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441

LIBC = ctypes.CDLL(None)

Open = Callable[[int], int]


def again(fd: int) -> Open:
    """What an open file gives when it is opened once more."""
    return lambda flags: os.open(f"/proc/self/fd/{fd}", flags & ~os.O_NOFOLLOW)


def slave(master: int) -> Open:
    return lambda flags: fcntl.ioctl(master, TIOCGPTPEER, flags | os.O_NOCTTY)


def opened(shm: Path) -> Iterator[tuple[str, Open]]:
    """Kinds that open() makes, each with how."""

    def named(path: Path | str) -> Open:
        return lambda flags: os.open(path, flags | os.O_NOCTTY)

    for path in (HERE / "file", HERE / "removed file", shm):
        path.write_text("content")
    yield "file", named(HERE / "file")
    yield "removed file", named(HERE / "removed file")
    yield "file without a name", again(os.open(HERE, os.O_TMPFILE | os.O_RDWR))
    yield "file of /dev/shm", named(shm)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as removed:
        yield "removed file of /dev/shm", named(removed.name)
    yield "memfd", again(os.memfd_create("kept"))
    for name in ("fifo", "removed fifo"):
        os.mkfifo(HERE / name)
        both = os.open(HERE / name, os.O_RDWR)  # so that no open waits
        yield name, named(HERE / name)
        os.set_blocking(both, False)
    reader, _ = os.pipe()
    yield "pipe", again(reader)
    yield "null", named("/dev/null")
    yield "urandom", named("/dev/urandom")
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    yield "slave side", slave(master)
    yield "slave side by its name", named(os.ttyname(slave(master)(os.O_RDWR)))
    yield "own file of /proc", named("/proc/self/comm")
    yield "file of /proc", named("/proc/sys/kernel/pid_max")


def master(flags: int) -> int:
    fd = os.open("/dev/ptmx", flags | os.O_NOCTTY)
    fcntl.ioctl(fd, TIOCSPTLCK, struct.pack("i", 0))
    slave(fd)(os.O_RDWR)
    return fd


def made() -> Iterator[tuple[str, Open]]:
    """Kinds that have calls of their own, and such as the calls make that open files."""
    yield "directory", lambda _: os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    yield "directory, opened as a file", lambda _: os.open(HERE, os.O_RDONLY)
    yield "first memfd", lambda _: os.memfd_create("first")
    yield "first file without a name", lambda _: os.open(HERE, os.O_TMPFILE | os.O_RDWR)
    yield "end to read", lambda _: os.pipe()[0]
    yield "end to write", lambda _: os.pipe()[1]
    yield "unix socket", lambda _: socket.socketpair()[0].detach()
    yield "TCP socket", lambda _: socket.socket().detach()
    yield "UDP socket", lambda _: socket.socket(type=socket.SOCK_DGRAM).detach()
    yield "netlink", lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).detach()
    yield "eventfd", lambda _: os.eventfd(3)
    yield "timerfd", lambda _: LIBC.timerfd_create(1, 0)
    yield "signalfd", lambda _: LIBC.signalfd(-1, ctypes.create_string_buffer(b"\1", 128), 0)
    yield "inotify", lambda _: LIBC.inotify_init1(0)
    yield "epoll", lambda _: LIBC.epoll_create1(0)
    yield "pidfd", lambda _: os.pidfd_open(os.getpid())


def all_of(shm: Path) -> Iterator[tuple[str, int]]:
    """A descriptor with each flag that a kind takes, with its name for people."""
    for kind, make in opened(shm):
        for letters, mode in MODES.items():
            name = f"{kind} {letters}"
            yield from attempts(name, make, [mode | flag for flag in AT_OPEN])
            yield from attempts(name, make, [mode], LATER)
    yield from attempts("master", master, [os.O_RDWR | flag for flag in (0, os.O_SYNC, os.O_DSYNC)])
    yield from attempts("master", master, [os.O_RDWR], LATER)
    for kind, make in made():
        yield from attempts(kind, make, [0])
        yield from attempts(kind, make, [0], LATER)
    for path in (HERE, HERE / "file", HERE / "fifo", "/dev/null"):
        yield from attempts(f"name {path}", partial(os.open, path), [os.O_PATH, os.O_PATH | os.O_NOFOLLOW])
    yield from attempts("name of a directory", partial(os.open, HERE), [os.O_PATH | os.O_DIRECTORY])


def attempts(name: str, make: Open, flags: Sequence[int], later: Sequence[int] = (0,)) -> Iterator[tuple[str, int]]:
    """A descriptor for each of `flags`, and each that it is given `later`, if the kernel has it so."""
    for one, other in product(flags, later):
        if os.O_DIRECT in (one & os.O_DIRECT, other) and name.startswith(("removed", "file without", "first file")):
            continue  # which is refused
        try:
            fd = make(one)
            if other:
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | other)
            yield f"{name}: {one:#o}, then {other:#o}", fd
        except OSError as error:  # it takes no such flag, or cannot be opened so
            if error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM):
                raise


def tell(kept: dict[str, int]) -> dict[str, int]:
    """The flags of each; O_NOFOLLOW, which says nothing of what is open, where a name is left to open."""
    nameless = ("removed", "file of /dev/shm")
    flags = {name: fcntl.fcntl(fd, fcntl.F_GETFL) for name, fd in kept.items()}
    return {name: one & ~os.O_NOFOLLOW if name.startswith(nameless) else one for name, one in flags.items()}


def main() -> None:
    shm = Path(f"/dev/shm/{HERE.name}")
    try:
        kept = dict(all_of(shm))
        for path in (HERE / "removed file", HERE / "removed fifo"):
            path.unlink()
        before = tell(kept)
        ready_and_wait()
        for name, flags in tell(kept).items():
            same(oct(flags), oct(before[name]), f"the flags of {name}")
    finally:
        shm.unlink()


judge(main)

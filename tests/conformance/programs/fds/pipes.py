"""Pipes with content: within one process, between parent and child, full, resized, with one side gone."""

import errno
import fcntl
import os

from ready import expect, judge, ready_and_wait, same

CONTENT = bytes(number * 7 % 251 for number in range(50_000))


def read_all(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def main() -> None:
    own = os.pipe()
    os.write(own[1], CONTENT)
    full = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    filled = 0
    try:
        while True:
            filled += os.write(full[1], CONTENT[:4096])
    except BlockingIOError:
        pass
    large = os.pipe()
    size = fcntl.fcntl(large[1], fcntl.F_SETPIPE_SZ, 1 << 18)
    os.write(large[1], CONTENT * 4)
    ended = os.pipe()
    os.write(ended[1], b"the end")
    os.close(ended[1])
    broken = os.pipe()
    os.write(broken[1], b"nobody reads this")
    os.close(broken[0])
    empty = os.pipe()
    reopened = os.pipe()  # a second description of one end, by /proc
    again = os.open(f"/proc/self/fd/{reopened[0]}", os.O_RDONLY | os.O_NONBLOCK)
    os.write(reopened[1], b"reopened")

    down, up = os.pipe(), os.pipe()
    os.write(down[1], b"before ")
    child = os.fork()
    if child == 0:
        for fd in (down[1], up[0]):
            os.close(fd)
        os.write(up[1], b"!child says: ")
        os.write(up[1], read_all(down[0]))
        os._exit(5)
    os.close(down[0])
    os.close(up[1])
    os.read(up[0], 1)  # the child has closed what it does not need
    ready_and_wait()

    same(os.read(own[0], 60_000), CONTENT, "a pipe within the process")
    same(read_nothing(full[1], os.O_WRONLY), errno.EAGAIN, "writing to a full pipe")
    same(len(b"".join(iter(lambda: read_some(full[0]), b""))), filled, "bytes in a full pipe")
    same(fcntl.fcntl(large[0], fcntl.F_GETPIPE_SZ), size, "capacity")
    same(os.read(large[0], 1 << 18), CONTENT * 4, "a large pipe")
    same(read_all(ended[0]), b"the end", "a pipe whose writer is gone")
    same(read_nothing(broken[1], os.O_WRONLY), errno.EPIPE, "a pipe whose reader is gone")
    os.set_blocking(empty[0], False)
    same(read_nothing(empty[0], os.O_RDONLY), errno.EAGAIN, "an empty pipe")
    same(os.read(again, 100), b"reopened", "a pipe's end that was opened anew")
    expect(os.get_blocking(reopened[0]) and not os.get_blocking(again), "flags of two descriptions of one end")
    os.write(down[1], b"after")
    os.close(down[1])
    same(read_all(up[0]), b"child says: before after", "through the child")
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 5, "the child's exit status")


def read_some(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


def read_nothing(fd: int, mode: int) -> int:
    """The error number of a read or write that must fail."""
    try:
        if mode == os.O_RDONLY:
            os.read(fd, 1)
        else:
            os.write(fd, b"x" * 4096)
    except OSError as error:
        return error.errno
    return 0


judge(main)

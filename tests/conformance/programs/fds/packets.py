"""Pipes and named pipes whose writers kept packets apart (O_DIRECT), did so for a while, or are gone."""

import fcntl
import os

from ready import HERE, judge, ready_and_wait, same

PAGE = b"x" * 4096


def write(fd: int, content: bytes, *, packet: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | (os.O_DIRECT if packet else 0))
    same(os.write(fd, content), len(content), "bytes written")


def reads(fd: int, *sizes: int) -> list[bytes]:
    return [os.read(fd, size) for size in sizes]


def main() -> None:
    kept = os.pipe2(os.O_DIRECT)
    for content in (b"kept", b"k", b"apart", b"t"):
        os.write(kept[1], content)
    gone = os.pipe2(os.O_DIRECT)
    os.write(gone[1], b"first")
    os.write(gone[1], b"second")
    os.close(gone[1])
    one = os.pipe2(os.O_DIRECT)
    os.write(one[1], b"only one")
    os.close(one[1])
    late = os.pipe()
    write(late[1], b"a stream", packet=False)
    fcntl.fcntl(late[1], fcntl.F_SETFL, os.O_DIRECT)
    mixed = os.pipe()
    write(mixed[1], PAGE, packet=False)  # a packet after less is a part of the stream
    for content in (b"1234567", b"p", b"123"):
        write(mixed[1], content, packet=True)
    write(mixed[1], b"the end", packet=False)
    os.read(mixed[0], 4000)
    os.mkfifo(HERE / "named")
    reader = os.open(HERE / "named", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(HERE / "named", os.O_WRONLY)
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_DIRECT)  # open() does not take it
    os.write(writer, b"by name")
    os.write(writer, b"again")
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    ready_and_wait()

    os.write(kept[1], b"more")
    same(reads(kept[0], 2, 9, 9, 9, 9), [b"ke", b"k", b"apart", b"t", b"more"], "a writer with O_DIRECT")
    same(reads(gone[0], 3, 99, 99), [b"fir", b"second", b""], "a writer with O_DIRECT that is gone")
    same(reads(one[0], 4, 99), [b"only", b""], "the only packet")
    os.write(late[1], b"packet")
    same(reads(late[0], 2, 6), [b"a ", b"stream"], "O_DIRECT after a stream")
    same(reads(late[0], 99), [b"packet"], "a packet after a stream")
    same(reads(mixed[0], 2, 99, 99, 1, 99), [b"xx", b"x" * 94 + b"1234567"[:5], b"p", b"1", b"the end"], "in turn")
    os.write(writer, b"stream")
    same(reads(reader, 2, 99, 99), [b"by", b"again", b"stream"], "a named pipe")


judge(main)

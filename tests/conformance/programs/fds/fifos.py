"""Named pipes: with content, between processes, with nobody at the other end, and opened anew."""

import os
import select

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    for name in ("own", "child", "alone"):
        os.mkfifo(HERE / name)
    reader = os.open(HERE / "own", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(HERE / "own", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"content" * 1000)
    both = os.open(HERE / "child", os.O_RDWR)
    child = os.fork()
    if child == 0:
        down = os.open(HERE / "child", os.O_RDONLY)
        for fd in (reader, writer, both):
            os.close(fd)
        os._exit(len(os.read(down, 100)))
    alone = os.open(HERE / "alone", os.O_RDONLY | os.O_NONBLOCK)
    ready_and_wait((child, 0))  # in read(2): it has closed what it does not need

    same(os.read(reader, 10_000), b"content" * 1000, "the content")
    os.write(writer, b"more")
    same(os.read(reader, 100), b"more", "what is written later")
    os.close(writer)
    same(os.read(reader, 100), b"", "the end")
    os.write(both, b"seven..")
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7, "what the child read")
    same(select.select([alone], [], [], 0)[0], [], "a named pipe that nobody writes to")
    other = os.open(HERE / "alone", os.O_WRONLY)
    os.write(other, b"knock")
    expect(os.read(alone, 100) == b"knock", "a writer that comes later is not heard")


judge(main)

"""A program in a directory that was removed, with descriptors of that one, of another and of a pipe without a name."""

import errno
import fcntl
import os
import stat

from ready import HERE, expect, judge, ready_and_wait, same


def nowhere() -> bool:
    """Whether the current directory is one that was removed: it has no name, and takes nothing."""
    try:
        os.getcwd()
    except FileNotFoundError:
        pass
    else:
        return False
    try:
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return error.errno == errno.ENOENT and os.listdir(".") == []
    return False


def main() -> None:
    (HERE / "gone").mkdir()
    (HERE / "above" / "below").mkdir(parents=True)
    (HERE / "above" / "below").chmod(0o751)
    os.chdir(HERE / "gone")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    below = os.open(HERE / "above" / "below", os.O_PATH)
    plainly = os.open(HERE / "above" / "below", os.O_RDONLY)
    os.mkfifo(HERE / "fifo", 0o640)
    reader = os.open(HERE / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(HERE / "fifo", os.O_WRONLY)
    os.write(writer, b"what waits")
    os.unlink(HERE / "fifo")
    os.mkfifo(HERE / "fifo")  # another one has its name
    (HERE / "gone").rmdir()
    (HERE / "above" / "below").rmdir()
    (HERE / "above").rmdir()
    (HERE / "above" / "below" / "kept").mkdir(parents=True)  # whose names are had, too
    os.lseek(here, 3, os.SEEK_SET)
    was = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (here, below, plainly)}
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(ours[0], 1)
        os.write(theirs[1], b"y" if nowhere() and os.path.samestat(os.stat("."), os.fstat(here)) else b"n")
        os._exit(0)
    expect(nowhere(), "the current directory is one that was removed, before")
    ready_and_wait()
    expect(nowhere(), "the current directory is one that was removed")
    same(os.path.samestat(os.stat("."), os.fstat(here)), True, "a descriptor of the current directory leads to it")
    same(os.lseek(here, 0, os.SEEK_CUR), 3, "the position of its descriptor")
    same((os.listdir(here), os.listdir(plainly)), ([], []), "what is in those that were removed")
    same(os.listdir(HERE / "above" / "below"), ["kept"], "what is in the directory that has such a name")
    same(stat.S_IMODE(os.fstat(below).st_mode), 0o751, "the mode of another one")
    for fd, flags in was.items():
        same(fcntl.fcntl(fd, fcntl.F_GETFL), flags, f"flags of descriptor {fd}")
    expect(not os.path.samestat(os.fstat(below), os.fstat(here)), "two directories are two")
    same(os.fstat(reader).st_nlink, 0, "the names of the pipe")
    same(stat.S_IMODE(os.fstat(reader).st_mode), 0o640, "its mode")
    same(os.read(reader, 100), b"what waits", "what lay in it")
    os.write(writer, b"more")
    same(os.read(reader, 100), b"more", "what is sent through it")
    os.write(ours[1], b"g")
    same(os.read(theirs[0], 1), b"y", "a child is in the same directory")
    os.waitpid(child, 0)


judge(main)

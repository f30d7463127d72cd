"""Files, directories, threads and mappings whose names hold what /proc escapes, or what ends a line elsewhere."""

import ctypes
import mmap
import os
import threading
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME = 15
NAMES = (
    b"a new\nline",
    b"one more\n",
    b"\\012 as it is",
    b"all of \\012 and\n",
    b"a carriage\rreturn",
    b"the end \r",
    b"\x0bother\x0c ends\x1c of\x85 lines\xe2\x80\xa8",
    b" blanks  ",
    b"not (deleted)",
    b"nor this (deleted)",
    b"\xff\xfe",
    b"'\"#$\t",
)


def names_itself(name: bytes) -> bytes:
    """Its name as the kernel has it."""
    LIBC.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)
    return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes()


def main() -> None:
    opened, shared, private, folders = {}, {}, {}, {}
    for name in NAMES:
        path = os.path.join(bytes(HERE), name)
        opened[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(opened[name], name.ljust(mmap.PAGESIZE))
        shared[name] = mmap.mmap(opened[name], mmap.PAGESIZE)
        private[name] = mmap.mmap(opened[name], mmap.PAGESIZE, mmap.MAP_PRIVATE)
        os.mkdir(path + b".d")
        folders[name] = os.open(path + b".d", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(os.path.join(bytes(HERE), NAMES[-1] + b".d"))
    links = {fd: os.readlink(b"/proc/self/fd/%d" % fd) for fd in (*opened.values(), *folders.values())}
    child = os.fork()
    if child == 0:
        os.chdir(os.path.join(bytes(HERE), NAMES[0] + b".d"))
        named = names_itself(b"\rUid:\t0\n)(\\")
        told = os.read(PIPE[0], 1)
        os._exit(0 if Path("/proc/self/comm").read_bytes() == named and told else 1)
    named = names_itself(b"x) R 1\r\xff")
    ready_and_wait()

    same(Path("/proc/self/comm").read_bytes(), named, "its name")
    for name, fd in opened.items():
        same(os.pread(fd, len(name), 0), name, f"what {name!r} holds")
        same(os.lseek(fd, 0, os.SEEK_CUR), mmap.PAGESIZE, f"the position in {name!r}")
        same(shared[name][: len(name)], name, f"the shared mapping of {name!r}")
        same(private[name][: len(name)], name, f"the private mapping of {name!r}")
        os.pwrite(fd, b"!", 0)
        same(shared[name][:1], b"!", f"what was written behind the shared mapping of {name!r}")
    for fd, link in links.items():
        same(os.readlink(b"/proc/self/fd/%d" % fd), link, "a name")
    same(os.getcwdb(), os.path.join(bytes(HERE), NAMES[-1] + b".d"), "the current directory")
    os.write(PIPE[1], b".")
    same(os.waitpid(child, 0), (child, 0), "the child")


PIPE = os.pipe()
judge(main)

"""inotify: watches on a file that has lost its name, on a program's packages, and on a directory that nobody names."""

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import tempfile
import termios
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

LIBC = ctypes.CDLL(None, use_errno=True)
IN_MODIFY, IN_CREATE, IN_CHANGES, IN_IGNORED, IN_ONESHOT = 0x2, 0x100, 0x7C0, 0x8000, 0x80000000


def events(notes: int) -> list[tuple[int, int]]:
    """The watch and the kind of each event that waits."""
    found, at = [], 0
    text = os.read(notes, 4096)
    while at < len(text):
        watch, kind, _, size = (int.from_bytes(text[at + k : at + k + 4], "little") for k in (0, 4, 8, 12))
        found.append((watch, kind))
        at += 16 + size
    return found


def main() -> None:
    notes = LIBC.inotify_init1(os.O_NONBLOCK)
    removed = os.open(HERE / "removed", os.O_CREAT | os.O_RDWR)
    nameless = LIBC.inotify_add_watch(notes, bytes(HERE / "removed"), IN_MODIFY)
    os.unlink(HERE / "removed")
    package = LIBC.inotify_add_watch(notes, os.fsencode(Path(json.__file__).parent), IN_CREATE)
    far = tempfile.mkdtemp(prefix="torpor-watched-", dir="/var/tmp")
    elsewhere = LIBC.inotify_add_watch(notes, os.fsencode(far), IN_CREATE)
    # What a wake makes anew: a socket with a name, a named pipe and a directory without one.
    busy = HERE / "busy"
    busy.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(busy / "socket"))
    os.mkfifo(busy / "fifo")
    fifo = os.open(busy / "fifo", os.O_RDWR)
    os.unlink(busy / "fifo")
    (busy / "directory").mkdir()
    os.chdir(busy / "directory")
    os.rmdir(busy / "directory")
    changes = LIBC.inotify_init1(os.O_NONBLOCK)
    LIBC.inotify_add_watch(changes, bytes(busy), IN_CHANGES)
    first = LIBC.inotify_init1(os.O_NONBLOCK)
    LIBC.inotify_add_watch(first, bytes(busy), IN_CREATE | IN_ONESHOT)
    ready_and_wait()

    for fd in (changes, first):
        same(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0], 0, "what is seen of the wake itself")
    (busy / "new").write_text("")
    same([kind for _, kind in events(first)], [IN_CREATE, IN_IGNORED], "what one that tells once tells")
    os.close(fifo)
    os.write(removed, b"changed")
    Path(far, "new").write_text("")
    same(events(notes), [(nameless, IN_MODIFY), (elsewhere, IN_CREATE)], "what is seen")
    same(LIBC.inotify_rm_watch(notes, package), 0, "the watch on a package")
    same(events(notes), [(package, IN_IGNORED)], "its end")
    shutil.rmtree(far)


judge(main)

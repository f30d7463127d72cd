"""A program that holds one thing in the directory `d`, of the kind that it is told."""

import ctypes
import mmap
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait

IN_ACCESS = 1


def main() -> None:
    place = HERE / "d"
    place.mkdir(exist_ok=True)
    (place / "a").write_text("the user's own")
    kind = sys.argv[1]
    if kind in ("file", "bundled file"):
        kept = os.open(place / "a", os.O_RDWR)
    elif kind == "mapped file":
        file = os.open(place / "a", os.O_RDWR)
        kept = mmap.mmap(file, 4)
        os.close(file)
    elif kind == "directory":
        kept = os.open(place, os.O_RDONLY)
    elif kind == "name":
        kept = os.open(place / "a", os.O_PATH)
    elif kind == "current directory":
        os.chdir(place)
    elif kind == "named pipe":
        os.mkfifo(place / "pipe")
        kept = os.open(place / "pipe", os.O_RDWR)
    elif kind == "socket":
        kept = socket.socket(socket.AF_UNIX)
        kept.bind(str(place / "socket"))
        kept.listen()
    elif kind == "watch":
        libc = ctypes.CDLL(None)
        kept = libc.inotify_init()
        libc.inotify_add_watch(kept, os.fsencode(place / "a"), IN_ACCESS)
    ready_and_wait()


judge(main)

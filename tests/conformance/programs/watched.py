"""inotify: watches on a file that has lost its name, on a program's packages, and on a directory that nobody names."""

import ctypes
import json
import os
import shutil
import tempfile
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same

LIBC = ctypes.CDLL(None, use_errno=True)
IN_MODIFY, IN_CREATE, IN_IGNORED = 0x2, 0x100, 0x8000


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
    ready_and_wait()

    os.write(removed, b"changed")
    Path(far, "new").write_text("")
    same(events(notes), [(nameless, IN_MODIFY), (elsewhere, IN_CREATE)], "what is seen")
    same(LIBC.inotify_rm_watch(notes, package), 0, "the watch on a package")
    same(events(notes), [(package, IN_IGNORED)], "its end")
    shutil.rmtree(far)


judge(main)

"""Files in a state that would be lost: leased, replaced."""

import fcntl
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    leased = os.open(HERE / "leased", os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    replaced = os.open(HERE / "replaced", os.O_RDWR | os.O_CREAT)
    os.write(replaced, b"old")
    (HERE / "new").write_text("new")
    (HERE / "new").rename(HERE / "replaced")
    os.link(HERE / "replaced", HERE / "other")
    elsewhere = os.open(HERE / "other", os.O_RDWR)
    os.unlink(HERE / "other")
    numbers = [leased, elsewhere]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()
    same(os.pread(replaced, 3, 0), b"old", "a replaced file")
    same(fcntl.fcntl(leased, fcntl.F_GETLEASE), fcntl.F_RDLCK, "the lease")


judge(main)

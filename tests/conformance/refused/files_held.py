"""Files in a state that would be lost: locked in two ways, leased, without a name, replaced."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    whole = os.open(HERE / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(whole, fcntl.LOCK_EX)
    part = os.open(HERE / "range", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(part, fcntl.LOCK_EX, 10)
    leased = os.open(HERE / "leased", os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    nameless = tempfile.TemporaryFile(dir=HERE)  # noqa: SIM115
    nameless.write(b"content that nobody else has")
    nameless.flush()
    replaced = os.open(HERE / "replaced", os.O_RDWR | os.O_CREAT)
    os.write(replaced, b"old")
    (HERE / "new").write_text("new")
    (HERE / "new").rename(HERE / "replaced")
    numbers = [whole, part, leased, nameless.fileno(), replaced]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()
    nameless.seek(0)
    same(nameless.read(), b"content that nobody else has", "a file without a name")
    same(os.pread(replaced, 3, 0), b"old", "a replaced file")
    child = os.fork()
    if child == 0:
        locked = 0
        for name, lock in (("flock", fcntl.flock), ("range", fcntl.lockf)):
            try:
                lock(os.open(HERE / name, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked += 1
        os._exit(locked)
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 2, "locks that hold")
    same(fcntl.fcntl(leased, fcntl.F_GETLEASE), fcntl.F_RDLCK, "the lease")
    expect(nameless, "kept until here")


judge(main)

"""A lease on a file without a name: to read what it holds would break that."""

import fcntl
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same

F_SETLEASE, F_GETLEASE = 1024, 1025


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    gone = os.open(HERE / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(HERE / "gone")
    os.write(gone, b"content")
    fcntl.fcntl(gone, F_SETLEASE, fcntl.F_WRLCK)
    (HERE / "numbers").write_text(f"{gone}")
    ready_and_wait()
    same(fcntl.fcntl(gone, F_GETLEASE), fcntl.F_WRLCK, "the lease")
    same(signal.sigpending() & {signal.SIGIO}, set(), "whoever has a lease was told of a breach")


judge(main)

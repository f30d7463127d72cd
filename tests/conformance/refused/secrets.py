"""Keys that nobody may read, in the keyring of a session; and those of one thread."""

import ctypes
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))
from ready import judge, ready_and_wait

ADD_KEY, KEYCTL = 248, 250
JOIN, THREAD, SESSION = 1, -1, -3
call = ctypes.CDLL(None, use_errno=True).syscall


def main() -> None:
    if call(KEYCTL, JOIN, b"mine") < 0:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)
    call(ADD_KEY, b"logon", b"disk:key", b"x", 1, SESSION)
    call(ADD_KEY, b"user", b"of the thread", b"x", 1, THREAD)
    ready_and_wait()


judge(main)

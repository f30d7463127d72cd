"""A process without a session keyring, with threads: it is given none, not even its user's.

Root's who becomes another user would have root's with him (lookup_user_key() gives it to who is asked for his).
"""

import ctypes
import os
import sys
import threading

from ready import judge, ready_and_wait, same

KEYCTL, GET_ID, DESCRIBE, SESSION = 250, 0, 6, -3
OTHER = 54321
call = ctypes.CDLL(None, use_errno=True).syscall


def as_another() -> bytes:
    """The session keyring of a child that has become another user, which it is asked for then."""
    theirs, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        # By this thread alone, and before any look.
        call(117, OTHER, OTHER, OTHER)  # setresuid(2)
        room = ctypes.create_string_buffer(1000)
        size = call(KEYCTL, DESCRIBE, call(KEYCTL, GET_ID, SESSION, 0), room, len(room))
        os.write(mine, room.raw[: max(size, 0)])
        os._exit(0)
    os.close(mine)
    with open(theirs, "rb") as told:
        text = told.read()
    os.waitpid(pid, 0)
    return text


def main() -> None:
    if os.geteuid():
        print("only root becomes another user")
        sys.exit(77)
    before, found = as_another(), []
    go = threading.Event()

    def look() -> None:
        go.wait()
        found.append(as_another())

    thread = threading.Thread(target=look)
    thread.start()
    ready_and_wait()

    same(as_another(), before, "the session keyring of a child that becomes another user")
    go.set()
    thread.join()
    same(found, [before], "that of a thread's child")


judge(main)

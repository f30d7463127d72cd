"""Keyrings: of a session, which a child and a thread have, of a process; keys with rights and an end."""

import ctypes
import os
import resource
import sys
import threading

from ready import expect, judge, ready_and_wait, same

ADD_KEY, KEYCTL = 248, 250
GET_ID, JOIN, SETPERM, DESCRIBE, SEARCH, READ, SET_TIMEOUT = 0, 1, 5, 6, 10, 11, 15
PROCESS, SESSION = -2, -3
MINE_ALONE = 0x3F000000
call = ctypes.CDLL(None, use_errno=True).syscall


def keyctl(*args: object) -> int:
    return int(call(KEYCTL, *args))


def add(ring: int, name: bytes, payload: bytes) -> int:
    key = call(ADD_KEY, b"user", name, payload, len(payload), ring)
    expect(key > 0, f"adding {name!r}: {os.strerror(ctypes.get_errno())}")
    return int(key)


def text_of(what: int, key: int) -> bytes:
    room = ctypes.create_string_buffer(1000)
    size = keyctl(what, key, room, len(room))
    return room.raw[:size] if size > 0 else b""


def seen(ring: int) -> dict[bytes, bytes]:
    """What lies in a keyring: payloads by what is told of each key."""
    serials = memoryview(text_of(READ, ring)).cast("i")
    return {text_of(DESCRIBE, key): text_of(READ, key) for key in serials}


def a_child(ring: bytes | None, name: bytes, *others: int) -> tuple[int, int]:
    """A child with a session keyring of its own, or its parent's; it looks for a key when its input ends.

    The one with its own can have no child, who would be asked for it.
    """
    theirs, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        for end in (mine, *others):
            os.close(end)
        if ring is not None:
            keyctl(JOIN, ring)
            add(SESSION, name, b"of the child")
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.read(theirs, 1)
        os._exit(0 if keyctl(SEARCH, SESSION, b"user", name, 0) > 0 else 1)
    os.close(theirs)
    return pid, mine


def main() -> None:
    if keyctl(JOIN, b"mine") < 0:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)
    add(SESSION, b"ticket", b"secret" * 100)
    keyctl(SETPERM, add(SESSION, b"mine alone", b"\0\1\2"), MINE_ALONE)
    keyctl(SET_TIMEOUT, add(SESSION, b"short-lived", b"x"), 86400 * 30)
    add(SESSION, b"odd\rname\nof a\n key", b"z")
    add(PROCESS, b"of the process", b"y")
    go, found = threading.Event(), []

    def look() -> None:
        go.wait()
        found.append((seen(SESSION), seen(PROCESS)))

    thread = threading.Thread(target=look)
    thread.start()
    same_ring = a_child(None, b"ticket")
    own_ring = a_child(b"other", b"own", same_ring[1])
    before = seen(SESSION), seen(PROCESS), text_of(DESCRIBE, SESSION)
    ready_and_wait()

    same((seen(SESSION), seen(PROCESS), text_of(DESCRIBE, SESSION)), before, "keyrings")
    go.set()
    thread.join()
    same(found, [before[:2]], "the keyrings that a thread sees")
    expect(keyctl(SEARCH, SESSION, b"user", b"own", 0) < 0, "the child's key is here")
    add(SESSION, b"ticket", b"a new one")
    for pid, end in (same_ring, own_ring):
        os.close(end)
        same(os.waitpid(pid, 0)[1], 0, "a child that looked for its key")


judge(main)

"""Has connections with the outside: one it made, one it accepted, one that just listens for more."""

import json
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    made = socket.create_connection(("127.0.0.1", int(os.environ["OUTSIDE_PORT"])))
    listener = socket.create_server(("127.0.0.1", 0))
    (HERE / "port.draft").write_text(json.dumps(listener.getsockname()[1]))
    (HERE / "port.draft").rename(HERE / "port")
    accepted, _ = listener.accept()
    made.sendall(b"hello")
    same(made.recv(100), b"hello to you", "the peer's answer")
    before = made.getsockname(), made.getpeername(), accepted.getsockname(), accepted.getpeername()
    word = ready_and_wait()
    for name, one in (("made", made), ("accepted", accepted)):
        try:
            if word.killed:
                got = one.recv(100)
                expect(False, f"the connection it {name} gave {got!r}, and was not reset")
            else:
                one.sendall(b"still here")
                same(one.recv(100), b"so am I", f"the connection it {name}")
        except ConnectionResetError:
            expect(word.killed, f"the connection it {name} was reset, and nobody was killed")
        if word.killed:  # as after any reset, the connection has ended
            same(one.recv(100), b"", f"after the reset of the connection it {name}")
            try:
                one.sendall(b"x")
                expect(False, f"the connection it {name} can be written after the reset")
            except BrokenPipeError:
                pass
    if not word.killed:
        now = made.getsockname(), made.getpeername(), accepted.getsockname(), accepted.getpeername()
        same(now, before, "addresses")
    newcomer, _ = listener.accept()
    same(newcomer.recv(100), b"new", "a new client")
    newcomer.sendall(b"welcome")


judge(main)

"""A descriptor that was sent through a socket and not received yet."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    here, there = socket.socketpair()
    reading, writing = os.pipe()
    socket.send_fds(here, [b"a pipe"], [writing])
    (HERE / "numbers").write_text(str(there.fileno()))
    ready_and_wait()
    message, fds, _, _ = socket.recv_fds(there, 100, 1)
    os.write(fds[0], b"through it")
    same((message, os.read(reading, 100)), (b"a pipe", b"through it"), "the descriptor that was under way")


judge(main)

"""Is connected to unix sockets outside: to one that listens, and to one whose answer it has not read."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import expect, judge, ready_and_wait, same


def main() -> None:
    quiet, answered = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in (quiet, answered):
        sock.connect(os.environ["OUTSIDE"])
    answered.sendall(b"question")
    same(answered.recv(1, socket.MSG_PEEK), b"a", "the beginning of the answer")
    word = ready_and_wait()
    same(answered.recv(100), b"answer", "what had been received")
    for sock in (quiet, answered):
        if word.killed:
            same(sock.recv(100), b"", "a connection whose peer has closed")
            try:
                sock.sendall(b"x")
                expect(False, "it can be written to")
            except BrokenPipeError:
                pass
        else:
            sock.sendall(b"still here")
            same(sock.recv(100), b"so am I", "the peer")


judge(main)

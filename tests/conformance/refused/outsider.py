"""Ends of pipes and sockets whose other ends are held by a process outside of the tree, and what waits."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    down, up = os.pipe(), os.pipe()
    ours, theirs = socket.socketpair()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    listener, early = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(HERE / "listener"))
    listener.listen()
    early.connect(str(HERE / "listener"))
    early.send(b"early")
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:  # no child of ours any more when the middle one has ended
            os.setsid()
            letters = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            letters.sendto(b"letter", datagrams.getsockname())
            visitor = socket.socket(socket.AF_UNIX)
            visitor.connect(str(HERE / "listener"))
            for fd in (down[1], up[0], ours.fileno(), datagrams.fileno(), listener.fileno(), early.fileno()):
                os.close(fd)
            os.write(up[1], b"!")
            while word := os.read(down[0], 100):  # until we close our end
                os.write(up[1], word.upper())
                theirs.send(word)
        os._exit(0)
    os.waitpid(middle, 0)
    for fd in (down[0], up[1], theirs.fileno()):
        os.close(fd)
    os.read(up[0], 1)
    os.write(down[1], b"before")
    same(os.read(up[0], 100), b"BEFORE", "the outsider's answer before")
    (HERE / "numbers").write_text(f"{down[1]} {up[0]} {ours.fileno()} {listener.fileno()}")
    ready_and_wait()
    same(listener.accept()[0].recv(100), b"early", "data of a connection that was not accepted")
    same(datagrams.recv(100), b"letter", "the outsider's datagram")
    os.write(down[1], b"word")
    same(os.read(up[0], 100), b"WORD", "the outsider's answer")
    expect(ours.recv(10, socket.MSG_WAITALL) == b"beforeword", "the outsider's socket")


judge(main)

"""Has connections with the outside that are to go on: with data in both queues, with its side shut, and accepted."""

import json
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def pattern(size: int) -> bytes:
    return b"".join(b"%08d" % k for k in range(size // 8))


def main() -> None:
    there = json.loads(os.environ["OUTSIDE"])
    family = socket.AF_INET6 if ":" in there[0] else socket.AF_INET
    full, shut = socket.socket(family), socket.socket(family)
    full.connect(tuple(there))
    shut.connect(tuple(there))
    full.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener = socket.create_server((there[0], 0), family=family)
    (HERE / "port.draft").write_text(json.dumps(listener.getsockname()[1]))
    (HERE / "port.draft").rename(HERE / "port")
    accepted, _ = listener.accept()
    same(full.recv(5, socket.MSG_WAITALL), b"hello", "the beginning of what the peer sent")
    same(full.recv(20, socket.MSG_PEEK | socket.MSG_WAITALL), b"and this is not read", "the rest")
    sent, whole = 0, pattern(8 << 20)
    full.setblocking(False)
    try:  # until the peer's queue and ours are full
        while True:
            sent += full.send(whole[sent : sent + (64 << 10)])
    except BlockingIOError:
        full.setblocking(True)
    (HERE / "sent").write_text(str(sent))
    shut.sendall(b"last words")
    shut.shutdown(socket.SHUT_WR)
    socks = (full, shut, accepted)
    names = [(sock.getsockname(), sock.getpeername()) for sock in socks]
    ready_and_wait()

    same([(sock.getsockname(), sock.getpeername()) for sock in socks], names, "addresses")
    expect(full.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "TCP_NODELAY")
    full.sendall(b"the end")
    same(full.recv(20, socket.MSG_WAITALL), b"and this is not read", "what had been received")
    same(full.recv(100), b"all received", "the peer's answer")
    full.close()
    same(shut.recv(100), b"still heard", "what comes on a connection whose own side is shut")
    same(shut.recv(100), b"", "its end")
    accepted.sendall(b"from the accepted")
    same(accepted.recv(100), b"thanks", "the answer on an accepted connection")
    newcomer, _ = listener.accept()
    newcomer.sendall(b"welcome")


judge(main)

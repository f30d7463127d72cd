"""Has connections with the outside that are to go on: with data in both queues, with its side shut, and accepted."""

import json
import os
import select
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def pattern(size: int) -> bytes:
    return b"".join(b"%08d" % k for k in range(size // 8))


def wait_for(sock: socket.socket) -> bool:
    """Wait until the peer's end is received: with data before it, poll() alone tells."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(100_000))


def main() -> None:
    there = json.loads(os.environ["OUTSIDE"])
    family = socket.AF_INET6 if ":" in there[0] else socket.AF_INET
    full, shut, ended = (socket.socket(family) for _ in range(3))
    for sock in (full, shut, ended):
        sock.connect(tuple(there))
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
    same(ended.recv(20, socket.MSG_PEEK | socket.MSG_WAITALL), b"last but not read", "what came before the peer's end")
    expect(wait_for(ended), "the peer has ended its side")
    accepted.shutdown(socket.SHUT_RD)
    socks = (full, shut, ended, accepted)
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
    same((ended.recv(100), ended.recv(100)), (b"last but not read", b""), "what the peer sent before its end")
    ended.sendall(b"to a peer that has ended")
    ended.close()
    same(accepted.recv(100, socket.MSG_DONTWAIT), b"", "an accepted connection that is shut for reading")
    accepted.sendall(b"from the accepted")
    while not (answer := accepted.recv(100)):  # it hears on, but does not wait
        os.sched_yield()
    same(answer, b"thanks", "the answer on an accepted connection")
    newcomer, _ = listener.accept()
    newcomer.sendall(b"welcome")


judge(main)

"""Datagram sockets with names that were shut when something lay in their queues: for reading, and for writing."""

import os
import socket

from ready import HERE, expect, judge, ready_and_wait, same

ABSTRACT = f"\0torpor-conformance-{os.getpid()}-shut"


def mailbox(name: str) -> tuple[socket.socket, socket.socket]:
    box, writer = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    box.bind(name)
    writer.connect(name)
    return box, writer


def is_deaf(writer: socket.socket) -> bool:
    try:
        writer.send(b"more")
    except BrokenPipeError:
        return True
    return False


def main() -> None:
    deaf, unheard = mailbox(str(HERE / "deaf"))
    unheard.send(b"before")
    deaf.shutdown(socket.SHUT_RD)
    box, dumb = mailbox(ABSTRACT)
    dumb.bind(ABSTRACT + "-dumb")
    dumb.send(b"last words")
    dumb.shutdown(socket.SHUT_WR)
    expect(is_deaf(unheard) and is_deaf(dumb), "those that are shut, before")
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (deaf_alone, _), (dumb_alone, _) = pairs
    for _, other in pairs:
        other.send(b"bequeathed")
        other.close()
    deaf_alone.shutdown(socket.SHUT_RD)
    dumb_alone.shutdown(socket.SHUT_WR)
    ready_and_wait()
    expect(is_deaf(unheard), "one that is shut takes nothing")
    expect(is_deaf(dumb), "one that is shut says nothing")
    expect(is_deaf(dumb_alone), "one that is shut, and whose other end is closed, says nothing")
    same((deaf_alone.recv(20), deaf_alone.recv(20)), (b"bequeathed", b""), "what comes to one that is shut and alone")
    same(deaf.recv(100), b"before", "what lay in it when it was shut")
    same(box.recvfrom(100), (b"last words", (ABSTRACT + "-dumb").encode()), "what it said before it was shut")


judge(main)

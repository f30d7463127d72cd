"""Unix sockets that were shut: pairs of each type, a listener, and datagram sockets with names and full queues."""

import errno
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
    types = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
    unread = [socket.socketpair(socket.AF_UNIX, kind) for kind in types]
    unsaid = [socket.socketpair(socket.AF_UNIX, kind) for kind in types]
    for (end, _), (_, sayer) in zip(unread, unsaid, strict=True):
        end.shutdown(socket.SHUT_RD)
        sayer.shutdown(socket.SHUT_WR)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(ABSTRACT + "-listener")
    listener.listen()
    listener.shutdown(socket.SHUT_RD)
    ready_and_wait()
    for end, sayer in unread:
        same(end.recv(20), b"", "an end that is shut for reading")
        expect(is_deaf(sayer), "whose other end is shut says nothing")
        end.send(b"half")
        same(sayer.recv(20), b"half", "the half that is not shut")
    for hearer, end in unsaid:
        expect(is_deaf(end), "an end that is shut for writing says nothing")
        if hearer.type != socket.SOCK_DGRAM:
            same(hearer.recv(20), b"", "whose other end is shut hears the end")
        hearer.send(b"half")
        same(end.recv(20), b"half", "the other half that is not shut")
    same(socket.socket(socket.AF_UNIX).connect_ex(ABSTRACT + "-listener"), errno.ECONNREFUSED, "a shut listener")
    expect(is_deaf(unheard), "one that is shut takes nothing")
    expect(is_deaf(dumb), "one that is shut says nothing")
    expect(is_deaf(dumb_alone), "one that is shut, and whose other end is closed, says nothing")
    same((deaf_alone.recv(20), deaf_alone.recv(20)), (b"bequeathed", b""), "what comes to one that is shut and alone")
    same(deaf.recv(100), b"before", "what lay in it when it was shut")
    same(box.recvfrom(100), (b"last words", (ABSTRACT + "-dumb").encode()), "what it said before it was shut")


judge(main)

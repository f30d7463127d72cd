"""Unix connections that were reset, of streams and of packets, and a stream in which an urgent byte was passed over."""

import contextlib
import errno
import socket

from ready import judge, ready_and_wait, same


def reset(kind: socket.SocketKind) -> socket.socket:
    """One whose other end was closed before it had read everything."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    one.send(b"unread")
    other.close()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # with it a send gives a socket of packets a name
    return one


def passed_over(after: bytes) -> tuple[socket.socket, socket.socket]:
    """One that has gone by an urgent byte: the kernel still counts that (FIONREAD)."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.send(b"!", socket.MSG_OOB)
    with contextlib.suppress(BlockingIOError):
        reader.recv(10)
    if after:
        writer.send(after)
    return reader, writer


def main() -> None:
    ended = [reset(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)]
    empty, full = passed_over(b""), passed_over(b"after")
    ready_and_wait()
    for one in ended:
        same(one.getsockname(), "", f"the name of {one.type}")
        same(one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), errno.ECONNRESET, f"the error of {one.type}")
        same(one.recv(10), b"", f"the end of {one.type}")
    same(full[0].recv(10), b"after", "what came after an urgent byte")
    for reader, writer in (empty, full):
        writer.send(b"more")
        same(reader.recv(10), b"more", "what comes later")


judge(main)

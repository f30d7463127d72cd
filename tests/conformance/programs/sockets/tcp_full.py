"""TCP within the tree, with more under way than the receiving end has room for: all of it arrives, in order."""

import fcntl
import itertools
import os
import socket
import struct
import termios

from ready import expect, judge, ready_and_wait, same

IPPROTO_MPTCP = 262


def pattern() -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in range(250_000))


def filled(protocol: int = 0, room: int = 0) -> tuple[socket.socket, socket.socket, int] | None:
    """A connection whose sender has written until no more went."""
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    except OSError:  # a kernel without MPTCP
        return None
    if room:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    listener.close()
    sender.setblocking(False)
    sent = 0
    try:
        for piece in itertools.repeat(pattern()):
            done = 0
            while done < len(piece):
                done += sender.send(piece[done:])
            sent += len(piece)
    except BlockingIOError:
        sent += done
    return sender, receiver, sent


def corked() -> tuple[socket.socket, socket.socket]:
    """A connection whose sender holds a few bytes back."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    receiver, _ = listener.accept()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sender.sendall(b"held back")
    return sender, receiver


def main() -> None:
    cases = [case for case in (filled(), filled(room=20_000), filled(IPPROTO_MPTCP)) if case]
    sizes = [receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for _, receiver, _ in cases]
    holding, held = corked()
    for _, receiver, sent in cases:
        (queued,) = struct.unpack("i", fcntl.ioctl(receiver, termios.FIONREAD, bytes(4)))
        expect(queued < sent, "all that was written was received: nothing is tested")
    ready_and_wait()

    for (sender, receiver, sent), size in zip(cases, sizes, strict=True):
        expect(receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= size, "a buffer became smaller")
        child = os.fork()
        if child == 0:
            sender.setblocking(True)
            sender.sendall(b"and more")
            os._exit(0)
        sender.close()
        got = b""
        while part := receiver.recv(1 << 20):
            got += part
        wanted = (pattern() * (sent // 1_000_000 + 1))[:sent] + b"and more"
        expect(got == wanted, f"{sent} bytes and 8 more became {len(got)}")
        os.waitpid(child, 0)
    same(cases[1][1].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), sizes[1], "a buffer of a size that was chosen")
    expect(holding.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK), "the cork is out")
    holding.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    same(held.recv(100), b"held back", "what was held back")


judge(main)

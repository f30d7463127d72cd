"""Unix sockets with names: who listens, who was accepted, and datagrams by name."""

import os
import socket
import struct
import threading
from multiprocessing.connection import Client, Listener
from multiprocessing.managers import BaseManager

from ready import HERE, expect, judge, ready_and_wait, same

ABSTRACT = f"\0torpor-conformance-{os.getpid()}"


class Counter:
    """What a manager's process holds."""

    def __init__(self) -> None:
        self.value = 0

    def add(self) -> int:
        self.value += 1
        return self.value


class Manager(BaseManager):
    """Serves counters over a unix socket."""


Manager.register("Counter", Counter)


def listen(name: str, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(name)
    listener.listen(7)
    return listener


def connect(name: str, kind: socket.SocketKind) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(name)
    return client


def main() -> None:
    path = str(HERE / "stream")
    stream = listen(path, socket.SOCK_STREAM)
    os.chmod(path, 0o640)
    packets = listen(ABSTRACT, socket.SOCK_SEQPACKET)
    client = connect(path, socket.SOCK_STREAM)
    server, _ = stream.accept()
    client.sendall(b"on its way")
    server.sendall(b"and back")
    sender = connect(ABSTRACT, socket.SOCK_SEQPACKET)
    receiver, _ = packets.accept()
    sender.send(b"one")
    sender.send(b"two")
    orphaned = listen(str(HERE / "closed"), socket.SOCK_STREAM)
    left = connect(str(HERE / "closed"), socket.SOCK_STREAM)
    right, _ = orphaned.accept()
    orphaned.close()

    mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mailbox.bind(str(HERE / "mailbox"))
    writer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    writer.bind(ABSTRACT + "-writer")
    writer.connect(str(HERE / "mailbox"))
    ended = []
    for name in (str(HERE / "ended"), str(HERE / "taken"), str(HERE / "removed"), ABSTRACT + "-ended"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as short:
            short.bind(name)
            ended.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            ended[-1].connect(name)
    os.unlink(HERE / "taken")
    os.unlink(HERE / "removed")
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    taken.bind(str(HERE / "taken"))
    ended_names = [one.getpeername() for one in ended]
    anonymous = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    anonymous.connect(str(HERE / "mailbox"))
    anonymous.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # with it a connect or a send gives it a name
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(ABSTRACT + "-bound")

    manager = Manager(address=str(HERE / "manager"), authkey=b"key")
    manager.start()
    counter = manager.Counter()  # type: ignore[attr-defined]
    same(counter.add(), 1, "the first number")
    requests = Listener(str(HERE / "requests"))
    waiting = threading.Thread(target=lambda: requests.accept().send("hello"))
    waiting.start()
    files = sorted(path.name for path in HERE.iterdir() if path.is_socket())
    ready_and_wait()

    same(server.recv(100), b"on its way", "what was on its way")
    same(client.recv(100), b"and back", "what was on its way back")
    same((server.getsockname(), client.getpeername()), (path, path), "names of a connection")
    same(os.stat(path).st_mode & 0o777, 0o640, "the mode of the file")
    same([receiver.recv(100), receiver.recv(100)], [b"one", b"two"], "packets")
    another = connect(path, socket.SOCK_STREAM)
    stream.accept()[0].sendall(b"new")
    same(another.recv(100), b"new", "a new connection")
    another = connect(ABSTRACT, socket.SOCK_SEQPACKET)
    packets.accept()[0].send(b"new")
    same(another.recv(100), b"new", "a new connection by an abstract name")
    left.sendall(b"still")
    same(right.recv(100), b"still", "a connection whose listener is closed")
    closed = str(HERE / "closed")
    same((right.getsockname(), left.getpeername()), (closed, closed), "its names, of a file that is still there")

    same([one.getpeername() for one in ended], ended_names, "names of mailboxes that were closed")
    same(sorted(path.name for path in HERE.iterdir() if path.is_socket()), files, "files")
    for one in ended:
        try:
            one.send(b"to nobody")
            expect(False, f"{one.getpeername()!r} is closed, and takes a datagram")
        except ConnectionRefusedError:
            pass
    same(anonymous.getsockname(), "", "no name")
    writer.send(b"letter")
    same(mailbox.recvfrom(100), (b"letter", (ABSTRACT + "-writer").encode()), "a datagram with its sender")
    anonymous.send(b"no name")
    same(mailbox.recv(100), b"no name", "a datagram from nobody")
    same(bound.getsockname(), (ABSTRACT + "-bound").encode(), "an abstract name")

    same(counter.add(), 2, "the number of a manager's process")
    same(manager.Counter().add(), 1, "a new counter in it")  # type: ignore[attr-defined]
    with Client(str(HERE / "requests")) as asking:
        same(asking.recv(), "hello", "the answer of a thread that was waiting")
    waiting.join()
    manager.shutdown()
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    expect(struct.unpack("iII", credentials)[1] == os.getuid(), "the user at the other end")


judge(main)

"""What lies in unix sockets: descriptors in messages, connections that were not accepted, datagrams at names."""

import fcntl
import os
import signal
import socket
from array import array

from ready import HERE, expect, judge, ready_and_wait, same

F_GETOWN_EX = 16
NAME = f"\0torpor-in-flight-{os.getpid()}"


def received(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    message, fds, _, _ = socket.recv_fds(sock, size, 4)
    return message, fds


def listening(name: str, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(name)
    listener.listen(5)
    return listener


def waiting(name: str, kind: socket.SocketKind) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(name)
    return client


def bound(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(name)
    return sock


def main() -> None:
    here, there = socket.socketpair()
    reading, writing = os.pipe()
    (HERE / "file").write_text("one two three")
    file = os.open(HERE / "file", os.O_RDONLY)
    os.read(file, 4)
    here.sendall(b"before")
    socket.send_fds(here, [b"with a file"], [file])
    socket.send_fds(here, [b"and two pipes"], [writing, reading])
    here.sendall(b"after")
    os.close(file)  # from now on it is nowhere but on its way
    os.close(writing)

    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inner, outer = socket.socketpair()
    socket.send_fds(inner, [b"deep"], [reading])
    one.send(b"first")
    if not (gone := os.fork()):
        os._exit(0)
    fcntl.fcntl(outer, fcntl.F_SETSIG, signal.SIGRTMIN)
    fcntl.fcntl(outer, fcntl.F_SETOWN, gone)
    fcntl.fcntl(outer, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK | os.O_ASYNC)
    os.waitpid(gone, 0)  # an owner that has ended: the kind of it is left
    socket.send_fds(one, [b"second"], [outer.fileno()])
    outer.close()
    one.send(b"third")
    memory = os.memfd_create("in flight")  # as PyTorch's loaders hand over what they have loaded
    os.write(memory, b"in memory")
    (HERE / "nameless").write_text("without a name")
    nameless = os.open(HERE / "nameless", os.O_RDWR)
    os.unlink(HERE / "nameless")
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"two files"], [memory, nameless])
    os.close(memory)
    os.close(nameless)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(left, [b"packet"], [right.fileno()])  # itself
    left.close()

    path = str(HERE / "stream")
    stream, packets = listening(path, socket.SOCK_STREAM), listening(NAME, socket.SOCK_SEQPACKET)
    clients = [waiting(path, socket.SOCK_STREAM) for _ in range(3)]
    accepted, _ = stream.accept()
    clients[2].shutdown(socket.SHUT_WR)
    client = waiting(NAME, socket.SOCK_SEQPACKET)

    mailbox, writer, friend = bound(str(HERE / "mailbox")), bound(NAME + "-writer"), bound(NAME + "-friend")
    writer.sendto(b"letter", mailbox.getsockname())
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"from nobody", mailbox.getsockname())
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [reading]))
    writer.sendmsg([b"with a pipe"], [rights], 0, mailbox.getsockname())
    wakeups, waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    calls = [b"", b"why", b"", b"", b"once more"]
    for call in calls:
        waker.send(call)
    writer.connect(friend.getsockname())
    friend.connect(writer.getsockname())
    friend.send(b"to the writer")
    names = writer.getsockname(), friend.getsockname()
    ready_and_wait()

    same(received(there, 3), (b"bef", []), "what was sent before any descriptor")
    message, (file,) = received(there, 100)
    same((message, os.read(file, 100)), (b"orewith a file", b"two three"), "a file that was on its way")
    message, pipes = received(there, 4)
    same((message, received(there, 100)), (b"and ", (b"two pipesafter", [])), "the rest of a stream")
    os.write(pipes[0], b"through")
    same((os.read(reading, 100), os.path.sameopenfile(pipes[1], reading)), (b"through", True), "a pipe")
    os.close(pipes[0])
    same(os.read(pipes[1], 1), b"", "a pipe that nobody writes to any more")

    same(received(other, 100), (b"first", []), "a datagram")
    message, (outer_fd,) = received(other, 100)
    with socket.socket(fileno=outer_fd) as outer:
        same(fcntl.fcntl(outer, fcntl.F_GETSIG), signal.SIGRTMIN, "the signal of a socket in a socket")
        expect(fcntl.fcntl(outer, fcntl.F_GETFL) & os.O_ASYNC, "it sends no signals any more")
        same(fcntl.fcntl(outer, F_GETOWN_EX, bytes(8)), b"\1\0\0\0\0\0\0\0", "whom it sends them to")
        inner.send(b"er")
        deep, (again,) = received(outer, 100)
        same((message, deep, outer.recv(100)), (b"second", b"deep", b"er"), "a socket that was in a socket")
        expect(os.path.sameopenfile(again, reading), "a descriptor in a socket in a socket")
    same(received(other, 100), (b"third", []), "another datagram")
    message, (memory, nameless) = received(theirs, 100)
    same((message, os.pread(memory, 100, 0)), (b"two files", b"in memory"), "memory that was on its way")
    same((os.read(memory, 1), os.lseek(memory, 0, os.SEEK_CUR)), (b"", 9), "its position")
    same(os.read(nameless, 100), b"without a name", "a file without a name that was on its way")
    message, (itself,) = received(right, 100)
    same(message, b"packet", "a packet")
    expect(os.path.sameopenfile(itself, right.fileno()), "a socket that was in itself")
    same(right.recv(100), b"", "the end of a connection")

    accepted.send(b"accepted")
    same(clients[0].recv(100), b"accepted", "the connection that was accepted")
    for number in (1, 2):
        server, _ = stream.accept()
        server.send(b"%d" % number)
        same(clients[number].recv(100), b"%d" % number, "connections in their order")
    same(server.recv(100), b"", "the half that was shut before it was accepted")
    client.send(b"at last")
    server, _ = packets.accept()
    same(server.recv(100), b"at last", "a connection by an abstract name")

    same([wakeups.recv(100) for _ in calls], calls, "empty datagrams among others")
    same(mailbox.recvfrom(100), (b"letter", names[0]), "a letter")
    same(mailbox.recvfrom(100), (b"from nobody", None), "a letter from nobody")
    message, (again,) = received(mailbox, 100)
    same((message, os.path.sameopenfile(again, reading)), (b"with a pipe", True), "a letter with a descriptor")
    same(writer.recvfrom(100), (b"to the writer", names[1]), "a datagram between two that are connected")
    writer.send(b"answer")
    same(friend.recv(100), b"answer", "its answer")


judge(main)

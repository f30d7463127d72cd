"""UDP sockets: bound, connected, on both families, with options, waited for, and with datagrams not yet read."""

import select
import socket
import struct
import threading
from contextlib import suppress

from ready import expect, judge, ready_and_wait, same


def bound(family: int, host: str, **options: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    sock.bind((host, 0))
    return sock


def room_taken(sock: socket.socket) -> int:
    """The bytes of memory that what waits to be read takes (SO_MEMINFO)."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 55, 4), "little")


def storage(address: str) -> bytes:
    """A struct sockaddr_storage."""
    return struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(address))


def main() -> None:
    server = bound(socket.AF_INET, "127.0.0.1", SO_BROADCAST=1, SO_RCVBUF=100_000)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(server.getsockname())
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 17)
    anywhere = bound(socket.AF_INET, "", SO_REUSEADDR=1)
    fresh = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        six = bound(socket.AF_INET6, "::1")
    except OSError:  # no IPv6 here
        six = bound(socket.AF_INET, "127.0.0.1")
    names = [sock.getsockname() for sock in (server, client, anywhere, fresh, six)]
    epoll = select.epoll()
    epoll.register(six, select.EPOLLIN)
    echo = bound(socket.AF_INET, "127.0.0.1")
    waiting = threading.Thread(target=lambda: echo.sendto(b"answer", echo.recvfrom(100)[1]))
    waiting.start()
    hearing, deaf = bound(socket.AF_INET, "", SO_REUSEADDR=1), bound(socket.AF_INET, "")
    queue = bound(socket.AF_INET, "")
    here = ("127.0.0.1", queue.getsockname()[1])
    closed = bound(socket.AF_INET, "127.0.0.1")
    sent = [(b"from one in the tree", server), (b"x" * 40_000, closed), (b"", client), (b"from itself", queue)]
    sent += [(b"from a wildcard", anywhere), (b"last", server)]
    client.connect(here)
    for content, sender in sent:
        full = room_taken(queue)
        sender.sendto(content, here)
        while room_taken(queue) == full:  # a busy kernel delivers it a little later
            pass
    client.connect(server.getsockname())
    anyones = bound(six.family, "::" if six.family == socket.AF_INET6 else "")
    for host in ("127.0.0.1", six.getsockname()[0], "127.0.0.1"):
        with bound(socket.AF_INET6 if ":" in host else socket.AF_INET, host) as sender:
            sender.sendto(host.encode(), (host, anyones.getsockname()[1]))
    senders = [("127.0.0.1", sender.getsockname()[1]) for _, sender in sent]
    closed.close()
    queue.connect(server.getsockname())  # from now on it hears nobody else
    memory = queue.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    failing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    failing.connect(senders[1])  # where nobody is any more
    failing.send(b"nobody hears this")
    poll = select.poll()
    poll.register(failing, 0)
    expect(poll.poll(100_000), "an error comes back")
    group = socket.inet_aton("239.77.3.1")
    loop = struct.pack("4s4si", group, socket.inet_aton("127.0.0.1"), socket.if_nametoindex("lo"))
    hearing.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, loop)
    only = struct.pack("=I4x", socket.if_nametoindex("lo")) + storage("239.77.3.2") + storage("127.0.0.1")
    deaf.setsockopt(socket.IPPROTO_IP, 46, only)  # MCAST_JOIN_SOURCE_GROUP
    server.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    shut, ended = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for one in (shut, ended):
        one.bind(("127.0.0.1", 0))
        one.connect(one.getsockname())
        one.send(b"sent before")
        one.send(b"")
    shut.shutdown(socket.SHUT_RD)
    ended.shutdown(socket.SHUT_RDWR)
    dumb, unheard = bound(socket.AF_INET, "127.0.0.1"), bound(six.family, six.getsockname()[0])
    for one in (dumb, unheard):
        one.connect(one.getsockname())
        one.send(b"sent before")
        one.shutdown(socket.SHUT_WR)
    nobodys = bound(socket.AF_INET, "127.0.0.1")
    with suppress(OSError):  # it is not connected: the kernel says so, and shuts it
        nobodys.shutdown(socket.SHUT_WR)
    word = ready_and_wait()

    for one in (shut, ended):
        same([one.recv(100) for _ in range(3)], [b"sent before", b"", b""], "one that is shut for reading")
    shut.send(b"still")
    nobodys.connect(nobodys.getsockname())
    for one in (ended, dumb, unheard, nobodys):
        try:
            one.send(b"never")
            expect(False, f"one that is shut for writing sends, at {one.getsockname()}")
        except BrokenPipeError:
            pass
    for one in (dumb, unheard):
        same(one.recv(100), b"sent before", "one that is shut for writing")
        expect(not select.select([one], [], [], 0)[0], "one that is shut for writing only hears on")

    try:
        failing.send(b"again")
        expect(word.killed, "the error was taken out")
    except ConnectionRefusedError:
        expect(not word.killed, "the error came again")
    server.sendto(b"to all", ("239.77.3.1", hearing.getsockname()[1]))
    same(hearing.recvfrom(100), (b"to all", server.getsockname()), "a datagram to a group")
    server.sendto(b"to the other", ("239.77.3.2", deaf.getsockname()[1]))
    same(deaf.recvfrom(100), (b"to the other", server.getsockname()), "a datagram to a group of one source")
    hearing.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, loop)

    same(queue.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), memory, "the size of the queue")
    for (content, _), name in zip(sent, senders, strict=True):
        same(queue.recvfrom(1 << 16, socket.MSG_DONTWAIT), (content, name), "a datagram that waited")
    got = [anyones.recv(100).decode() for _ in range(3)]
    same(got, ["127.0.0.1", six.getsockname()[0], "127.0.0.1"], "datagrams of two families that waited in one socket")
    anywhere.sendto(b"stranger", here)
    server.sendto(b"known", here)
    same(queue.recvfrom(100), (b"known", server.getsockname()), "who is heard")
    same([sock.getsockname() for sock in (server, client, anywhere, fresh, six)], names, "addresses")
    client.send(b"request")
    same(server.recvfrom(100), (b"request", client.getsockname()), "a datagram with its sender")
    same(client.getpeername(), server.getsockname(), "whom it is connected to")
    expect(server.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST), "SO_BROADCAST")
    same(server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), 200_000, "SO_RCVBUF")
    same(client.getsockopt(socket.IPPROTO_IP, socket.IP_TTL), 17, "IP_TTL")
    same(anywhere.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), 1, "SO_REUSEADDR")
    same(server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), 0, "SO_REUSEADDR that was not set")
    fresh.sendto(b"to six" if six.family == socket.AF_INET else b"to four", ("127.0.0.1", anywhere.getsockname()[1]))
    expect(anywhere.recv(100).startswith(b"to "), "a socket bound to every address")
    six.sendto(b"itself", six.getsockname())
    same([fd for fd, _ in epoll.poll(100)], [six.fileno()], "what is ready")
    client.connect(echo.getsockname())
    client.send(b"question")
    same(client.recv(100), b"answer", "the answer of a thread that was waiting")
    waiting.join()


judge(main)

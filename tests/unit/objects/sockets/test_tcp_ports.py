"""TCP ports that others have, too, or had, and connections in which much waits to be read."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import holder, opened
from tests.unit.objects.sockets.descriptor_sockets import SERVER, sock
from torpor.objects.fds import descriptors
from torpor.objects.sockets import port_holders, tcp_flow

PLAIN = SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
RESET = struct.pack("ii", 1, 0)
FROM_ONE_PORT = """
l = socket.create_server(("127.0.0.1", 0))
c = socket.socket()
c.setsockopt(socket.IPPROTO_IP, 51, struct.pack("=HH", {port}, {port}))
c.connect(l.getsockname())
s = l.accept()[0]
ready(c=c.fileno(), s=s.fileno())
wait()
"""
PLENTY = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2]) * 6 // 10
READS_FAST = """
got = 0
while got < 4 * size: got += len(s.recv(1 << 20))
s.setblocking(False)
"""
"""What makes the kernel give a connection as large a buffer as it has."""


def a_free_port() -> int:
    """One of those that the kernel chooses by itself."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_local_port_that_a_connection_of_another_program_has_too_is_free() -> None:
    code = FROM_ONE_PORT.format(port=a_free_port())
    with holder(code) as other:
        other.ready()
        with holder(code) as tree:
            fds = tree.ready()
            image = tree.dump()
            assert descriptors.validate(image), "the program itself still listens"
            descriptors.arm_reset(descriptors.grab(tree.pids))
        with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
            c.send(b"mine")
            assert s.recv(10) == b"mine"


def test_a_local_port_that_another_program_is_bound_to_is_not() -> None:
    port = a_free_port()
    with holder(FROM_ONE_PORT.format(port=port)) as tree:
        tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        (reason,) = descriptors.validate(image)
    assert f"127.0.0.1:{port}" in reason.subject
    assert "the port is taken by process" in reason.why
    assert descriptors.validate(image) == []


def test_how_long_connections_that_have_ended_hold_a_port_is_said() -> None:
    with holder(PLAIN + "c, s = pair(); s.close(); c.close()\nready(l=l.fileno())\nwait()") as tree:
        tree.ready()
        image = tree.dump()
    (reason,) = descriptors.validate(image)
    assert "connections that have ended still hold the port" in reason.why
    (seconds,) = re.findall(r"try again in (\d+) s", reason.advice)
    assert 0 < int(seconds) <= 61
    assert reason.seconds == int(seconds) + 1


@pytest.mark.parametrize("first", ["s", "c"])
def test_a_port_that_old_connections_hold_can_be_had_again(first: str) -> None:
    """As after a kill -9, of a program that lets its port be used again (SO_REUSEADDR), as servers do."""
    second = {"s": "c", "c": "s"}[first]
    with holder(
        f"""
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname())
s = l.accept()[0]
ready(l=l.fileno(), c=c.fileno(), s=s.fileno(), port=l.getsockname()[1])
wait()
{first}.close()
{second}.close()
ready()
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        assert descriptors.validate(image), "the program itself still listens"
        assert tree.go_on("on")
    if first == "s":
        assert port_holders.find(fds["port"]).seconds
    assert descriptors.validate(image) == []
    with opened(image) as woken, sock(woken, fds["l"]) as listener:
        assert listener.getsockname()[1] == fds["port"]
        with sock(woken, fds["c"]) as client, sock(woken, fds["s"]) as server:
            client.send(b"again")
            assert server.recv(10) == b"again"


def test_as_much_as_a_connection_can_have_received_comes_back() -> None:
    with holder(
        PLAIN
        + f"""
c, s = pair()
c.setblocking(False); s.setblocking(False)
room = lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
def send(content):
    sent = 0
    try:
        while sent < len(content): sent += c.send(content[sent:])
    except BlockingIOError: pass
    return sent
for _ in range(100):
    left = send(bytes(64 << 20))
    while left:
        try: left -= len(s.recv(64 << 20))
        except BlockingIOError: pass
    if room() >= {PLENTY}: break
queued = lambda: struct.unpack("i", fcntl.ioctl(s, 0x541b, bytes(4)))[0]
content, sent = os.urandom(room() * 4 // 5), 0
while sent < len(content): sent += send(memoryview(content)[sent:])
while queued() < len(content): pass
ready(c=c.fileno(), s=s.fileno(), queued=len(content))
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    received = next(d.tcp.received for d in image.descriptions if d.tcp.received)
    assert len(received) == fds["queued"]
    with opened(image) as woken, sock(woken, fds["s"]) as s:
        s.setblocking(True)
        got = s.recv(len(received), socket.MSG_WAITALL)
    assert hashlib.sha1(got).digest() == hashlib.sha1(received).digest()


@pytest.mark.parametrize("room", ["enough", "too little"])
def test_much_that_came_from_outside_is_read_before_the_reset(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 8 << 20
    if room == "too little":
        monkeypatch.setattr(tcp_flow, "make_room", lambda *_: None)
        monkeypatch.setattr(tcp_flow, "bring", lambda *_: None)
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as outside,
        holder(
            f"""
s = socket.create_connection(("127.0.0.1", {outside.getsockname()[1]}))
size = {size}
{READS_FAST}
ready(s=s.fileno())
wait()
"""
        ) as tree,
        outside.accept()[0] as far,
    ):
        far.sendall(bytes(4 * size))
        fds = tree.ready()
        far.setblocking(False)
        content = b"".join(number.to_bytes(4, "big") for number in range(size // 4))
        sent = far.send(content)
        image = tree.dump()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    (received,) = (d.tcp.received for d in image.descriptions if d.WhichOneof("kind") == "tcp")
    assert received == content[: len(received)]
    with opened(image) as woken, sock(woken, fds["s"]) as s:
        got = b""
        with pytest.raises(ConnectionResetError):
            while piece := s.recv(1 << 20):
                got += piece
        warnings = woken.opened.warnings
    assert content.startswith(got)
    if room == "enough":
        assert (got, warnings) == (received, [])
        assert len(got) > 128 << 10, sent
    else:
        assert 0 < len(got) < len(received)
        assert f"before the last {len(received) - len(got)} bytes" in warnings[0]

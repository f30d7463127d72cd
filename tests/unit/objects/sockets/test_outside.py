"""TCP to the outside, the ports of this host, UDP, and what no socket keeps."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from tests.unit.objects.sockets.descriptor_sockets import SERVER, sock, states
from torpor.objects.fds import descriptors
from torpor.objects.sockets import common
from torpor.objects.sockets.tcp import client_ports


def test_a_socket_is_judged_when_its_process_has_ended_since_the_thaw() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with closing(socket.socket()) as one:
        state = common.look(one.fileno(), {}, listening=False)
    assert list(common.unsupported(state, ended.pid)) == []


def test_tcp_to_the_outside_is_reset_as_by_the_peer(acting: Acting) -> None:
    def body(_: Path) -> None:
        with (
            closing(socket.create_server(("127.0.0.1", 0))) as outside,
            holder(
                f"""
e = select.epoll()
c = socket.create_connection(("127.0.0.1", {outside.getsockname()[1]}))
d = socket.create_connection(("127.0.0.1", {outside.getsockname()[1]}))
e.register(c, select.EPOLLIN); e.register(d, select.EPOLLIN | select.EPOLLRDHUP)
c.setblocking(False)
ready(c=c.fileno(), d=d.fileno(), e=e.fileno())
wait()
"""
            ) as tree,
        ):
            fds = tree.ready()
            first, second = (outside.accept()[0] for _ in range(2))
            with first, second:
                first.send(b"read me first")
                second.send(b"the end")
                second.shutdown(socket.SHUT_WR)
                assert tree.survey() == []
                image = tree.dump()
        with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["d"]) as d:
            with select.epoll.fromfd(os.dup(woken(fds["e"]))) as epoll:
                told = dict(epoll.poll(0))
            assert told[fds["c"]] == select.EPOLLERR | select.EPOLLHUP | select.EPOLLIN
            assert told[fds["d"]] == select.EPOLLIN | select.EPOLLRDHUP
            assert c.recv(100) == b"read me first"
            with pytest.raises(ConnectionResetError):
                c.recv(100)
            assert c.recv(100) == b""
            with pytest.raises(BrokenPipeError):
                c.send(b"x")
            with pytest.raises(OSError, match="not connected"):
                c.getpeername()
            assert (d.recv(100), d.recv(100)) == (b"the end", b"")

    acting(body)


def test_what_a_wake_will_not_bring_back_is_told() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as outside,
        closing(socket.socket(socket.AF_UNIX)) as door,
    ):
        door.bind(b"")
        door.listen()
        port, name = outside.getsockname()[1], door.getsockname()
        with holder(
            f"""
l = socket.create_server(("127.0.0.1", 0))
inside = socket.create_connection(l.getsockname()), l.accept()[0]
waiting = socket.create_connection(l.getsockname())
outside = [socket.create_connection(("127.0.0.1", {port})) for _ in range(5)]
u = socket.socket(socket.AF_UNIX); u.connect({name!r})
master, slave = os.openpty()
m = socket.create_server(("127.0.0.1", 0))
ready(l=l.fileno(), port=l.getsockname()[1], served=m.getsockname()[1])
client = m.accept()[0]
client.send(client.recv(1))
wait()
"""
        ) as tree:
            fds = tree.ready()
            with (
                socket.create_connection(("127.0.0.1", fds["port"])),
                socket.create_connection(("127.0.0.1", fds["served"])) as client,
            ):
                client.send(b"x")
                client.recv(1)
                tree.stop()
                grabbed = descriptors.grab(tree.pids, reset_outside=True)
                terminal, unix, tcp, served, early = descriptors.notices(grabbed)
            tree.end()
    assert f"process {tree.pids[0]} (python" in tcp
    assert f"to 127.0.0.1:{port}" in tcp
    assert tcp.endswith(" and 2 more")
    assert served.startswith("TCP connections that others made will be seen reset, at port ")
    assert client_ports(served) == {fds["served"]}
    assert not any(map(client_ports, (terminal, unix, tcp, early)))
    assert early.endswith("not accepted yet are lost: 1")
    assert f"to the unix socket @{name[1:].decode()}" in unix
    assert "/dev/pts/" in terminal


def test_a_connection_that_is_being_made_is_reset_too() -> None:
    with holder(
        """
full = socket.create_server(("127.0.0.1", 0), backlog=0)
def connect():
    c = socket.socket(); c.setblocking(False); c.connect_ex(full.getsockname()); return c
cs = [connect() for _ in range(4)]
state = lambda s: s.getsockopt(6, socket.TCP_INFO, 1)[0]
c = next(c for c in cs if state(c) == 2)
f = socket.socket(); b = socket.socket(); b.bind(("127.0.0.1", 0))
ready(c=c.fileno(), f=f.fileno(), b=b.fileno(), port=b.getsockname()[1])
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["f"]) as f, sock(woken, fds["b"]) as b:
        assert states(c.fileno()) & select.POLLERR
        assert c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert states(f.fileno()) == select.POLLOUT | select.POLLHUP
        assert b.getsockname()[1] == fds["port"]


def test_a_port_that_is_taken_and_an_address_that_is_not_here(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
            + "m = socket.create_server(('127.0.0.1', 0)); ready(l=l.fileno(), p=l.getsockname()[1])\nwait()"
        ) as tree:
            fds = tree.ready()
            image = tree.dump()
            taken = descriptors.validate(image)
        assert len(taken) == 2, "both are told at once"
        assert (
            f"the program listens at 127.0.0.1:{fds['p']}: the port is taken by process {tree.process.pid} (python"
            in str(taken[0])
        )
        assert descriptors.validate(image) == []
        index = next(e.description for e in image.processes[0].fds if e.fd == fds["l"])
        local = bytearray(image.descriptions[index].tcp.local)
        local[4:8] = bytes([192, 0, 2, 1])
        image.descriptions[index].tcp.local = bytes(local)
        (reason,) = descriptors.validate(image)
        assert "this host does not have the address" in reason.why

    acting(body)


def test_an_outsider_who_comes_between_is_turned_away() -> None:
    with holder(
        SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
        + "c, s = pair(); ready(l=l.fileno(), c=c.fileno(), s=s.fileno(), p=l.getsockname()[1])\nwait()"
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    outsider = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import socket
print(flush=True)
while True:
    try:
        with socket.create_connection(("127.0.0.1", {fds["p"]})) as s:
            s.recv(1)
    except OSError:
        pass
""",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert outsider.stdout
        outsider.stdout.readline()
        for _ in range(20):
            with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
                c.send(b"mine")
                assert s.recv(10) == b"mine"
                assert s.getpeername() == c.getsockname()
                for end in (c, s):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        outsider.kill()
        outsider.communicate()


def test_a_connection_still_in_time_wait_is_waited_for() -> None:
    with holder(
        SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
        + "l = socket.create_server(('127.0.0.1', 0)); c, s = pair(l); ready(c=c.fileno(), s=s.fileno())\nwait()"
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        tree.end()
    with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
        c.send(b"again")
        assert s.recv(10) == b"again"


def test_arming_leaves_nothing_on_the_ports() -> None:
    with holder(
        SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
        + "c, s = pair(); ready(p=l.getsockname()[1])\nwait()"
    ) as tree:
        port = tree.ready()["p"]
        tree.stop()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    assert f":{port:04X}" not in Path("/proc/net/tcp").read_text()


def test_options_that_are_never_kept_are_refused() -> None:
    fds, image = dumped(SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0) + "ready(l=l.fileno())\nwait()")
    index = next(e.description for e in image.processes[0].fds if e.fd == fds["l"])
    image.descriptions[index].tcp.options.add(level=socket.SOL_SOCKET, name=26, value=b"1234")
    assert "which is never kept" in str(descriptors.validate(image))


def test_udp_sockets_keep_their_addresses(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
c = socket.socket(type=socket.SOCK_DGRAM); c.connect(s.getsockname()); c.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
ready(s=s.fileno(), c=c.fileno())
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert "the port is taken" in str(descriptors.validate(image))
        with opened(image) as woken:
            server, client = sock(woken, fds["s"]), sock(woken, fds["c"])
            with server, client:
                client.send(b"x")
                assert server.recvfrom(10) == (b"x", client.getsockname())
                assert client.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 9

    acting(body)

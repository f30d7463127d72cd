"""Unix and TCP sockets: who is connected to whom, what is on its way, and what becomes of it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.unit.descriptor_tree import Woken, acting_as, holder, no_memory, opened
from tests.users import User
from torpor.errors import RestoreFailed
from torpor.objects import descriptors, sockets, tcp_flow
from torpor.objects.tcp import Tcp

Acting = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def acting(as_user: User) -> Acting:
    """Runs the test's body as root and as an ordinary user, with a directory of theirs."""
    return lambda body: acting_as(as_user, partial(body, as_user.tmp))


def sock(woken: Woken, fd: int) -> socket.socket:
    """A socket of our own for a slot."""
    return socket.socket(fileno=os.dup(woken(fd)))


def states(fd: int) -> int:
    """What poll() says."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))


def test_a_socket_is_judged_when_its_process_has_ended_since_the_thaw() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with closing(socket.socket()) as one:
        state = sockets.look(one.fileno(), {}, listening=False)
    assert list(sockets.judge(state, ended.pid)) == []


# ------------------------------------------------------------------------------------------------------- unix


def test_unix_pairs_keep_what_is_on_its_way(acting: Acting) -> None:
    def body(_: Path) -> None:
        with holder(
            """
a, b = socket.socketpair()
a.send(b"to b"); a.send(b" more"); b.sendall(bytes(100000))
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for m in (b"one", b"", b"three" * 1000): c.send(m)
e, f = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for m in (b"1", b"22"): f.send(m)
a.setblocking(False)
f.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); b.setsockopt(1, socket.SO_RCVTIMEO, struct.pack("qq", 3, 0))
ready(**{n: globals()[n].fileno() for n in "abcdef"})
wait()
print(b.recv(100) == b"to b more" and d.recv(10) == b"one" and d.recv(10) == b"" and len(d.recv(9000)) == 5000
      and (e.recv(10), e.recv(10)) == (b"1", b"22") and d.getsockopt(1, 42) == -1, flush=True)
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert tree.go_on("") == "True", "it was looked at, not taken"
        with opened(image) as woken:
            a, b, c, d, e, f = (sock(woken, fds[n]) for n in "abcdef")
            with a, b, c, d, e, f:
                assert b.recv(100) == b"to b more"
                assert a.recv(1 << 20) == bytes(100000)
                assert [d.recv(9000) for _ in range(3)] == [b"one", b"", b"three" * 1000]
                assert [e.recv(10), e.recv(10)] == [b"1", b"22"]
                assert (os.get_blocking(woken(fds["a"])), os.get_blocking(woken(fds["b"]))) == (False, True)
                assert f.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
                assert struct.unpack("qq", b.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)) == (3, 0)
                assert not a.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
                e.send(b"on")
                assert f.recv(10) == b"on"

    acting(body)


def test_a_full_unix_socket_comes_back_full() -> None:
    with holder(
        """
a, b = socket.socketpair(); a.setblocking(False)
n = 0
try:
    while True: n += a.send(b"x")
except BlockingIOError: pass
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); c.setblocking(False)
m = 0
try:
    while True: m += c.send(b"y" * 200) and 1
except BlockingIOError: pass
ready(a=a.fileno(), b=b.fileno(), d=d.fileno(), n=n, m=m)
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
    with opened(image) as woken, sock(woken, fds["b"]) as b, sock(woken, fds["d"]) as d:
        got = 0
        while got < fds["n"]:
            got += len(b.recv(1 << 20, socket.MSG_DONTWAIT))
        assert got == fds["n"]
        assert [d.recv(1000, socket.MSG_DONTWAIT) for _ in range(fds["m"])] == [b"y" * 200] * fds["m"]
        with pytest.raises(BlockingIOError):
            d.recv(1, socket.MSG_DONTWAIT)


def test_unix_shutdowns_and_closed_ends() -> None:
    with holder(
        """
a, b = socket.socketpair(); a.send(b"last"); a.shutdown(socket.SHUT_WR)
c, d = socket.socketpair(); d.send(b"bye"); d.close()
e, f = socket.socketpair(); e.send(b"unread"); f.close()
g, h = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); h.close()
i = socket.socket(socket.AF_UNIX)
ready(**{n: globals()[n].fileno() for n in "abcegi"})
wait()
"""
    ) as tree:
        fds = tree.ready()
        assert tree.survey() == []
        image = tree.dump()
    with opened(image) as woken:
        a, b, c, e, g, i = (sock(woken, fds[n]) for n in "abcegi")
        with a, b, c, e, g, i:
            assert (b.recv(10), b.recv(10)) == (b"last", b"")
            with pytest.raises(BrokenPipeError):
                a.send(b"x")
            b.send(b"back")
            assert a.recv(10) == b"back"
            assert (c.recv(10), c.recv(10)) == (b"bye", b"")
            with pytest.raises(ConnectionResetError):
                e.recv(10)
            with pytest.raises(ConnectionRefusedError):
                g.send(b"x")
            with pytest.raises(OSError, match="not connected"):
                i.send(b"x")


def test_unix_sockets_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        closing(socket.socket(socket.AF_UNIX)) as server,
        holder(
            f"""
l = socket.socket(socket.AF_UNIX); l.bind("\\0torpor-test-" + str(os.getpid())); l.listen()
c = socket.socket(socket.AF_UNIX); c.connect(l.getsockname()); c.send(b"x")
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.bind({path + "-d"!r}); os.unlink({path + "-d"!r})
m = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); m.bind(l.getsockname() + b"-m")
t = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); t.bind(l.getsockname() + b"-t"); t.sendto(b"x", m.getsockname())
t.close()
os.chdir({str(tmp_path)!r}); r = socket.socket(socket.AF_UNIX); r.bind("relative")
wait()
o = socket.socket(socket.AF_UNIX); o.connect({path!r})
a, b = socket.socketpair(); b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); a.send(b"x")
p, q = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); socket.send_fds(p, [b"x"], [os.pidfd_open(os.getpid())])
g, h = socket.socketpair(); fcntl.fcntl(g, fcntl.F_SETOWN, os.getpid())
ready(**{{n: globals()[n].fileno() for n in "lnmrobqg"}})
wait()
"""
        ) as tree,
    ):
        server.bind(path)
        server.listen()
        assert tree.process.stdin
        tree.process.stdin.write(b"\n")
        tree.process.stdin.flush()
        fds = tree.ready()
        tree.stop()
        about = {
            reason.subject.split(", fd ")[1].split()[0]: str(reason)
            for reason in descriptors.problems(descriptors.grab(tree.pids))
        }
    for name, why in {
        "l": "data was sent on a connection to it that was not accepted yet",
        "n": f"its name {path}-d does not lead to it",
        "m": "and nobody in the tree has that name",
        "r": "its name relative is not a full path",
        "o": f"its other end is outside of the tree (the unix socket {path})",
        "b": "messages with the credentials of their senders wait in it",
        "q": "a pidfd is on its way to it",
        "g": "it sends signals to",
    }.items():
        assert why in about[str(fds[name])]
    assert len(about) == 8


def test_named_unix_sockets_come_back_where_they_were(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        path = str(tmp / "listener")
        with holder(
            f"""
l = socket.socket(socket.AF_UNIX); l.bind({path!r}); l.listen(3); os.chmod({path!r}, 0o600)
c = socket.socket(socket.AF_UNIX); c.connect({path!r}); s, _ = l.accept(); c.send(b"content")
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind(b"\\0torpor-test-%d" % os.getpid())
e = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); e.connect(d.getsockname())
ready(**{{n: globals()[n].fileno() for n in "lcsde"}})
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            said = str(descriptors.check(image))
            assert "somebody has the name" in said and "the name cannot be had" in said
            with pytest.raises(RestoreFailed):
                descriptors.open_all(image, no_memory)
        with opened(image) as woken:
            listener, c, s, d, e = (sock(woken, fds[n]) for n in "lcsde")
            with listener, c, s, d, e:
                assert s.recv(10) == b"content"
                assert (s.getsockname(), c.getpeername()) == (path, path)
                e.send(b"letter")
                assert d.recv(10) == b"letter"
                assert os.stat(path).st_mode & 0o777 == 0o600
                with socket.socket(socket.AF_UNIX) as new:
                    new.connect(path)
                    listener.accept()[0].close()
        Path(path).unlink()
        Path(path).write_text("precious")
        assert "something else has its name" in str(descriptors.check(image))
        with pytest.raises(RestoreFailed, match="something else has its name"):
            descriptors.open_all(image, no_memory)
        assert Path(path).read_text() == "precious"

    acting(body)


def test_a_socket_in_stdio_is_the_restorers(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, holder("ready(); wait()", stderr=theirs.fileno()) as tree:
        tree.ready()
        theirs.close()
        assert tree.survey() == []
        image = tree.dump()
    entry = next(entry for entry in image.processes[0].fds if entry.fd == 2)
    assert image.descriptions[entry.description].outside.stdio == 2
    assert "the unix socket" in image.descriptions[entry.description].outside.was


# -------------------------------------------------------------------------------------------------------- tcp

FAMILIES = {"4": ("AF_INET", "127.0.0.1", 0), "6": ("AF_INET6", "::1", 0), "mptcp": ("AF_INET", "127.0.0.1", 262)}
SERVER = """
l = socket.socket(socket.{family}, socket.SOCK_STREAM, {protocol}); l.bind(({host!r}, 0)); l.listen(7)
def pair(listener=None):
    at = listener or l
    c = socket.socket(socket.{family}, socket.SOCK_STREAM, {protocol}); c.connect(at.getsockname()[:2])
    return c, at.accept()[0]
"""


@pytest.fixture(params=FAMILIES)
def server(request: pytest.FixtureRequest) -> str:
    """Code that makes a listener and connections to it, of each family."""
    family, host, protocol = FAMILIES[request.param]
    try:
        with closing(socket.socket(getattr(socket, family), socket.SOCK_STREAM, protocol)) as probe:
            probe.bind((host, 0))
    except OSError as error:
        pytest.skip(str(error))
    return SERVER.format(family=family, host=host, protocol=protocol)


def test_tcp_within_the_tree_comes_back_on_its_ports(acting: Acting, server: str) -> None:
    def body(_: Path) -> None:
        with holder(
            server
            + """
c, s = pair()
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
l.setblocking(False)
c.send(b"to the server"); s.send(b"to the client")
ready(l=l.fileno(), c=c.fileno(), s=s.fileno(), names=[c.getsockname(), c.getpeername()])
wait()
"""
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            descriptors.arm_reset(descriptors.grab(tree.pids))
        with opened(image) as woken:
            listener, c, s = (sock(woken, fds[n]) for n in "lcs")
            with listener, c, s:
                assert [list(c.getsockname()), list(c.getpeername())] == fds["names"]
                assert [list(s.getpeername()), list(s.getsockname())] == fds["names"]
                assert (s.recv(100), c.recv(100)) == (b"to the server", b"to the client")
                c.sendall(b"x" * 100000)
                assert len(s.recv(100000, socket.MSG_WAITALL)) == 100000
                assert [k.getsockopt(6, socket.TCP_NODELAY) for k in (listener, c, s)] == [0, 1, 0]
                assert [k.getsockopt(1, socket.SO_KEEPALIVE) for k in (listener, c, s)] == [0, 0, 1]
                if c.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP:
                    assert [k.getsockopt(1, socket.SO_REUSEADDR) for k in (listener, c, s)] == [0, 0, 0]
                assert [os.get_blocking(woken(fds[n])) for n in "lcs"] == [False, True, True]
                assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:32] == struct.pack("I", 7)
                with socket.create_connection(listener.getsockname()[:2]) as guest:
                    accepted, _ = listener.accept()
                    with accepted:
                        guest.send(b"hello")
                        assert accepted.recv(10) == b"hello"

    acting(body)


def test_tcp_whose_listener_is_gone_needs_none(server: str) -> None:
    with holder(server + "c, s = pair(); l.close()\nready(c=c.fileno(), s=s.fileno())\nwait()") as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    before = listening()
    with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
        c.send(b"x")
        assert s.recv(10) == b"x"
        assert listening() == before, "the listener of the moment is gone"


def listening() -> set[str]:
    """The TCP sockets of this process that listen, by their links."""
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    listeners = {f"socket:[{line.split()[9]}]" for line in lines if line.split()[3] == "0A"}
    return listeners.intersection(os.readlink(f"/proc/self/fd/{fd}") for fd in descriptors_of_this_process())


def descriptors_of_this_process() -> list[str]:
    """Those that are still open when the listing has ended."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


@pytest.mark.parametrize("order", ["client first", "server first"])
def test_tcp_halves_that_were_shut(server: str, order: str) -> None:
    ends = "s, c = reversed(pair())" if order == "client first" else "c, s = pair()"
    with holder(
        server
        + ends
        + """
c.send(b"last"); c.shutdown(socket.SHUT_WR)
s.send(b"answer")

ready(c=c.fileno(), s=s.fileno())
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
        assert (s.recv(10), s.recv(10)) == (b"last", b"")
        assert c.recv(10) == b"answer"
        s.send(b"more")
        assert c.recv(10) == b"more"
        with pytest.raises(BrokenPipeError):
            c.send(b"x")


@pytest.mark.parametrize("then", ["client shuts reading", "both end"])
def test_tcp_other_shutdowns(then: str) -> None:
    code = "c.shutdown(socket.SHUT_RD)" if "reading" in then else "s.send(b'rest'); s.shutdown(1); c.shutdown(1)"
    with holder(
        SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
        + f"""
l = socket.create_server(('127.0.0.1', 0)); c, s = pair(l)
{code}
ready(c=c.fileno(), s=s.fileno())
wait()
"""
    ) as tree:
        fds = tree.ready()
        assert tree.survey() == []
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with opened(image) as woken, sock(woken, fds["c"]) as c, sock(woken, fds["s"]) as s:
        if "reading" in then:
            assert c.recv(10) == b""
            c.send(b"still")
            assert s.recv(10) == b"still"
        else:
            assert (c.recv(10), c.recv(10), s.recv(10)) == (b"rest", b"", b"")
            assert states(c.fileno()) & (select.POLLHUP | select.POLLERR) == select.POLLHUP
            with pytest.raises(BrokenPipeError):
                s.send(b"x")


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
            taken = descriptors.check(image)
        assert len(taken) == 2, "both are told at once"
        assert (
            f"the program listens at 127.0.0.1:{fds['p']}: the port is taken by process {tree.process.pid} (python"
            in str(taken[0])
        )
        assert descriptors.check(image) == []
        index = next(e.description for e in image.processes[0].fds if e.fd == fds["l"])
        local = bytearray(image.descriptions[index].tcp.local)
        local[4:8] = bytes([192, 0, 2, 1])
        image.descriptions[index].tcp.local = bytes(local)
        (reason,) = descriptors.check(image)
        assert "this host does not have the address" in reason.why

    acting(body)


def test_what_is_under_way_in_the_tree_arrives_or_is_refused_and_much_that_was_received_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
    with holder(
        code
        + """
c, s = pair()
c.setblocking(False)
sent = 0
try:
    while True: sent += c.send(bytes(65536))
except BlockingIOError: pass
ready(c=c.fileno(), s=s.fileno(), sent=sent)
wait()
"""
    ) as tree:
        fds = tree.ready()
        assert tree.survey() == []
        tree.stop()
        with monkeypatch.context() as patch:  # as where the kernel has no room for it
            patch.setattr(tcp_flow, "bring", lambda *_: None)
            (reason,) = descriptors.problems(descriptors.grab(tree.pids))
        received = {held.holders[0].fd: held.state.received for held in descriptors.grab(tree.pids).of(Tcp)}
        assert len(received[fds["s"]]) == fds["sent"]
        assert f", fd {fds['c']} (" in reason.subject
        assert "bytes are on their way to its other end in this tree" in reason.why
    with holder(
        code
        + """
l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
c, s = pair()
n = min(len(bytes(1500000)), s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 4)
c.sendall(os.urandom(n))
while len(s.recv(n, socket.MSG_PEEK)) < n: pass
ready(s=s.fileno(), c=c.fileno(), n=n)
wait()
"""
    ) as tree:
        fds = tree.ready()
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with opened(image) as woken, sock(woken, fds["s"]) as s:
        assert s.recv(fds["n"], socket.MSG_WAITALL) == image.descriptions[woken.index(fds["s"])].tcp.received


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
    with holder(SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0) + "ready(l=l.fileno())\nwait()") as tree:
        fds = tree.ready()
        image = tree.dump()
    index = next(e.description for e in image.processes[0].fds if e.fd == fds["l"])
    image.descriptions[index].tcp.options.add(level=socket.SOL_SOCKET, name=26, value=b"1234")
    assert "which is never kept" in str(descriptors.check(image))


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
            assert "the port is taken" in str(descriptors.check(image))
        with opened(image) as woken:
            server, client = sock(woken, fds["s"]), sock(woken, fds["c"])
            with server, client:
                client.send(b"x")
                assert server.recvfrom(10) == (b"x", client.getsockname())
                assert client.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 9

    acting(body)

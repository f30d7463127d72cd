"""Unix sockets: who is connected to whom, what is on its way, and what becomes of it."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, no_memory, opened
from tests.unit.objects.sockets.descriptor_sockets import sock
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Tree, UnixSocket
from torpor.objects.fds import descriptors
from torpor.objects.kind import GrabbedDescriptors, OpenFile
from torpor.objects.sockets import unix_diag, unix_names, unix_sockets


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
      and (e.recv(10), e.recv(10)) == (b"1", b"22") and d.getsockopt(1, 42) < 0, flush=True)
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
    fds, image = dumped(
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
    )
    with opened(image) as woken, sock(woken, fds["b"]) as b, sock(woken, fds["d"]) as d:
        got = 0
        while got < fds["n"]:
            got += len(b.recv(1 << 20, socket.MSG_DONTWAIT))
        assert got == fds["n"]
        assert [d.recv(1000, socket.MSG_DONTWAIT) for _ in range(fds["m"])] == [b"y" * 200] * fds["m"]
        with pytest.raises(BlockingIOError):
            d.recv(1, socket.MSG_DONTWAIT)


def test_unix_shutdowns_and_closed_ends() -> None:
    fds, image = dumped(
        """
a, b = socket.socketpair(); a.send(b"last"); a.shutdown(socket.SHUT_WR)
c, d = socket.socketpair(); d.send(b"bye"); d.close()
e, f = socket.socketpair(); e.send(b"unread"); f.close()
g, h = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); h.close()
i = socket.socket(socket.AF_UNIX)
ready(**{n: globals()[n].fileno() for n in "abcegi"})
wait()
"""
    )
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
m = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); m.bind(l.getsockname() + b"-m")
t = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); t.bind(l.getsockname() + b"-t"); t.sendto(b"x", m.getsockname())
t.close()
wait()
o = socket.socket(socket.AF_UNIX); o.connect({path!r})
a, b = socket.socketpair(); b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); a.send(b"x")
p, q = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); socket.send_fds(p, [b"x"], [os.pidfd_open(os.getpid())])
g, h = socket.socketpair(); fcntl.fcntl(g, fcntl.F_SETOWN, os.getppid())
ready(**{{n: globals()[n].fileno() for n in "lmobqg"}})
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
            for reason in descriptors.unsupported(descriptors.grab(tree.pids))
        }
    for name, why in {
        "l": "data was sent on a connection to it that was not accepted yet",
        "m": "and nobody in the tree has that name",
        "o": f"its other end is outside of the tree (the unix socket {path})",
        "b": "messages with the credentials of their senders wait in it",
        "q": "a pidfd is on its way to it",
        "g": f"it sends signals to process {os.getpid()} (",
    }.items():
        assert why in about[str(fds[name])]
    assert len(about) == 6


def test_a_name_that_is_free_a_moment_later_is_waited_for() -> None:
    """The kernel collects the sockets of a killed tree that lie in each other's queues in its own time."""
    image = Tree()
    image.processes.add(pid=1).fds.add(fd=3)
    for name in (b"\0torpor-test-late", b"\0torpor-test-taken"):
        image.descriptions.add(flags=os.O_RDWR).unix.CopyFrom(UnixSocket(type=socket.SOCK_DGRAM, name=name))
    with ExitStack() as names, pytest.MonkeyPatch.context() as patch:
        late, taken = (names.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2))
        late.bind(b"\0torpor-test-late")
        taken.bind(b"\0torpor-test-taken")
        patch.setattr(unix_names, "COLLECTED", 0.05)
        patch.setattr(time, "sleep", lambda _: late.close())
        (reason,) = descriptors.validate(image)
    assert "torpor-test-taken" in reason.subject and "the name is not available" in reason.why


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
            said = str(descriptors.validate(image))
            assert "another process has the name" in said and "the name is not available" in said
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
        assert "something else has its name" in str(descriptors.validate(image))
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


def test_one_that_was_just_closed_does_not_cost_a_search_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The survey of a running tree once looked up all sockets anew for each of them: with 20,000, for minutes."""
    looked: list[int] = []
    found = unix_diag.Diagnosis.sockets.func  # type: ignore[attr-defined]  # cached_property

    def without_the_first(self: unix_diag.Diagnosis) -> dict[int, unix_diag.Known]:
        return {inode: one for inode, one in found(self).items() if inode != first}

    def count(open_file: OpenFile[unix_sockets.UnixState], tree: GrabbedDescriptors) -> None:
        looked.append(open_file.stat.st_ino)

    with holder("pairs = [socket.socketpair() for _ in range(20)]; ready(a=pairs[0][0].fileno()); wait()") as tree:
        first = os.stat(f"/proc/{tree.process.pid}/fd/{tree.ready()['a']}").st_ino
        by_inode = cached_property(without_the_first)
        by_inode.__set_name__(unix_diag.Diagnosis, "sockets")
        monkeypatch.setattr(unix_diag.Diagnosis, "sockets", by_inode)
        monkeypatch.setattr(unix_sockets, "_find_file", count)
        reasons = tree.survey()
    assert any(reason.passing for reason in reasons)
    assert len(looked) == len(set(looked)) == 40

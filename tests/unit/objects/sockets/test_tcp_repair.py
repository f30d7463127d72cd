"""TCP connections to the outside that go on: held while their processes are killed, made again, and let go once."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import FdReference, holder
from torpor.errors import CheckpointFailed, NotPermitted
from torpor.image.image_pb2 import KeptConnection, TcpSocket
from torpor.objects import kind
from torpor.objects.sockets import addresses, tcp_repair

NAME = "0123456789abcdef" * 2
by_root = pytest.mark.skipif(not tcp_repair.can_keep(), reason="only root keeps connections, with CAP_NET_ADMIN")

PROGRAM = """
c = socket.create_connection(("127.0.0.1", {port}))
{code}
ready(c=c.fileno())
wait()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept connections, for this test."""
    monkeypatch.setattr(tcp_repair, "RUN", tmp_path / "connections")
    return tmp_path / "connections"


def test_names_are_of_one_form() -> None:
    names = {tcp_repair.new_name() for _ in range(100)}
    assert len(names) == 100 and all(map(tcp_repair.is_name, names))
    for bad in ("", "..", NAME[1:], NAME + "0", NAME.upper(), NAME[:-3] + "/..", NAME[:-1] + "\n", NAME[:-1] + "٣"):
        assert not tcp_repair.is_name(bad), bad


def test_only_root_keeps_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_repair, "can_keep", lambda: False)
    with pytest.raises(NotPermitted, match="--tcp=keep"):
        tcp_repair.require()
    assert tcp_repair.find(TcpSocket(kept=NAME)) is None


def killed(tree: FdReference) -> int:
    """Have somebody else kill the stopped process, which stays as a zombie; its PID."""
    (pid,) = tree.pids
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_of_a_process_that_was_killed_nothing_is_held() -> None:
    with holder("ready(c=0)\nwait()") as tree, tcp_repair.Hold() as hold:
        tree.ready()
        tree.stop()
        hold.take(NAME, kind.FdReference(killed(tree), 0))
        hold.save("a-snapshot")


def test_what_the_kernel_refuses_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with holder("ready()\nwait()") as tree:
        tree.ready()
        with pytest.raises(OSError, match="Bad file"):
            kind.copy_unless_ended(kind.FdReference(tree.pids[0], 1000))


def states(directory: Path) -> Iterator[KeptConnection]:
    for path in directory.iterdir():
        yield KeptConnection.FromString(path.read_bytes())


@contextmanager
def kept(
    run: Path, code: str, before: bytes = b"", *, ended: bool = False
) -> Iterator[tuple[TcpSocket, socket.socket]]:
    """A connection to us whose process is gone: its end in an image, and our end.

    Args:
        run: where it is kept.
        code: what the process does with its end, `c`.
        before: what we have sent it, which it has not read.
        ended: whether we have ended our side.
    """
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        holder(PROGRAM.format(port=listener.getsockname()[1], code=code)) as tree,
    ):
        ours, _ = listener.accept()
        fds = tree.ready()
        ours.sendall(before)
        if ended:
            ours.shutdown(socket.SHUT_WR)
        tree.stop()
        with tcp_repair.Hold() as hold:
            hold.take(NAME, kind.FdReference(tree.pids[0], fds["c"]))
            killed(tree)
            hold.save("a-snapshot")
        tcp = TcpSocket(kept=NAME, family=socket.AF_INET, state=TcpSocket.OUTSIDE)
        for state in states(run):
            assert (run / NAME).stat().st_mode & 0o777 == 0o600
            tcp.local, tcp.remote = state.local, state.remote
    with ours:
        yield tcp, ours


def woken(tcp: TcpSocket) -> socket.socket:
    """The connection, which goes on."""
    state = tcp_repair.find(tcp)
    assert state
    sock = tcp_repair.make(tcp, state)
    tcp_repair.let_go(sock, tcp, state)
    return sock


@by_root
def test_a_connection_goes_on_with_what_was_not_read_yet(run: Path) -> None:
    with kept(run, "c.sendall(b'x' * 100)", b"not read yet") as (tcp, ours), woken(tcp) as sock:
        assert ours.recv(200, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"x" * 100
        assert sock.recv(100) == b"not read yet"
        sock.sendall(b"y" * 30_000)
        received = b""
        while len(received) < 30_000:
            received += ours.recv(1 << 20)
        assert received == b"y" * 30_000
        ours.sendall(b"z" * 30_000)
        while len(received) < 60_000:
            received += sock.recv(1 << 20)
        assert received[30_000:] == b"z" * 30_000
        assert sock.getsockname() == ours.getpeername()
        assert not (run / NAME).exists()
        assert tcp_repair.find(tcp) is None, "it goes on once"


@by_root
def test_sides_that_had_ended_have_ended(run: Path) -> None:
    with kept(run, "", b"the rest", ended=True) as (tcp, ours), woken(tcp) as sock:
        assert (sock.recv(100), sock.recv(100)) == (b"the rest", b"")
        sock.sendall(b"still here")
        assert ours.recv(100) == b"still here"
    with kept(run, "c.sendall(b'last'); c.shutdown(socket.SHUT_WR)") as (tcp, ours), woken(tcp) as sock:
        assert (ours.recv(100), ours.recv(100)) == (b"last", b"")
        ours.sendall(b"to a reader")
        assert sock.recv(100) == b"to a reader"
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


@by_root
def test_one_that_both_sides_have_ended_is_not_kept(run: Path) -> None:
    with kept(run, "c.shutdown(socket.SHUT_WR)", ended=True) as (tcp, _):
        assert tcp_repair.find(tcp) is None
        assert list(run.iterdir()) == []


@by_root
def test_one_that_cannot_be_kept_costs_the_others_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = tcp_repair._read, []

    def fails_at_first(copy: int) -> KeptConnection | None:
        asked.append(copy)
        if len(asked) == 1:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return read(copy)

    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        tcp_repair.Hold() as hold,
        closing(socket.create_connection(listener.getsockname())) as first,
        closing(socket.create_connection(listener.getsockname())) as second,
    ):
        hold.take(tcp_repair.new_name(), kind.FdReference(os.getpid(), first.fileno()))
        hold.take(NAME, kind.FdReference(os.getpid(), second.fileno()))
        monkeypatch.setattr(tcp_repair, "_read", fails_at_first)
        with pytest.raises(CheckpointFailed, match="not all of their TCP connections could be kept: No buffer space"):
            hold.save("a-snapshot")
        (state,) = states(run)
        assert state.local == addresses.local_name(second.fileno())


@by_root
def test_one_that_others_have_too_is_not_kept(run: Path) -> None:
    code = "if os.fork() == 0: wait(); os._exit(0)"
    with kept(run, code) as (tcp, _):
        assert tcp_repair.find(tcp) is None


@by_root
def test_a_file_that_is_not_this_connections_is_not_believed(run: Path) -> None:
    run.mkdir()
    here, there = (sockaddr(port) for port in (1000, 2000))
    tcp = TcpSocket(local=here, remote=there, kept=NAME)
    good = KeptConnection(local=here, remote=there, window=bytes(tcp_repair.WINDOW.size))
    (run / NAME).write_bytes(good.SerializeToString())
    assert tcp_repair.find(tcp) == good
    for bad in (
        KeptConnection(local=there, remote=here, window=good.window),
        KeptConnection(local=here, remote=there, window=good.window[1:]),
        KeptConnection(local=here, remote=there),
    ):
        (run / NAME).write_bytes(bad.SerializeToString())
        assert tcp_repair.find(tcp) is None
    (run / NAME).write_bytes(b"\xff" * 10)
    assert tcp_repair.find(tcp) is None
    (run / NAME).write_bytes(good.SerializeToString())
    os.chown(run / NAME, 1000, 1000)
    assert tcp_repair.find(tcp) is None
    (run / NAME).unlink()
    assert tcp_repair.find(tcp) is None


def sockaddr(port: int) -> bytes:
    name = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    assert addresses.address(name).port == port
    return name

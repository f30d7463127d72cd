"""TCP within the tree: both ends come back on their ports, with what is on its way and what was shut."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, holder, opened
from tests.unit.objects.sockets.descriptor_sockets import FAMILIES, SERVER, sock, states
from torpor.objects.fds import descriptors
from torpor.objects.sockets import buffers, tcp_flow
from torpor.objects.sockets.tcp import Tcp


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
            (reason,) = descriptors.unsupported(descriptors.grab(tree.pids))
        received = {
            open_file.references[0].fd: open_file.state.received for open_file in descriptors.grab(tree.pids).of(Tcp)
        }
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has buffers above the limit")
@pytest.mark.parametrize("name", [socket.SO_RCVBUF, socket.SO_SNDBUF])
def test_a_buffer_above_the_limit_is_never_made_smaller(name: int) -> None:
    force = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}[name]  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, force, 1 << 28)
        before = tcp.getsockopt(socket.SOL_SOCKET, name)
        assert not buffers.enlarge(tcp, name)
        assert tcp.getsockopt(socket.SOL_SOCKET, name) == before > 1 << 28
    with socket.socket() as tcp:
        before = tcp.getsockopt(socket.SOL_SOCKET, name)
        assert buffers.enlarge(tcp, name) and not buffers.enlarge(tcp, name)
        assert tcp.getsockopt(socket.SOL_SOCKET, name) > before


def test_a_tree_of_which_somebody_else_has_killed_a_process_is_ended_all_the_same() -> None:
    code = SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
    with holder(code + "c, s = pair()\nready()\nwait()") as tree:
        tree.ready()
        tree.stop()
        grabbed = descriptors.grab(tree.pids)
        os.kill(tree.pids[0], signal.SIGKILL)
        os.waitid(os.P_PID, tree.pids[0], os.WEXITED | os.WNOWAIT)
        descriptors.arm_reset(grabbed)


def test_the_end_of_a_peer_that_is_gone_takes_what_the_program_ends_later() -> None:
    """As long as without a wake (tcp_fin_timeout, mostly 60 s): afterwards the kernel would answer with a reset."""
    server = SERVER.format(family="AF_INET", host="127.0.0.1", protocol=0)
    with holder(server + "c, s = pair(); s.close(); c.recv(1)\nready(c=c.fileno())\nwait()") as tree:
        c = tree.ready()["c"]
        image = tree.dump()
        descriptors.arm_reset(descriptors.grab(tree.pids))
    with opened(image) as woken, sock(woken, c) as mine:
        deadline = time.monotonic() + 10
        while not (timer := fin_wait_2(mine.getpeername()[1])) and time.monotonic() < deadline:
            time.sleep(0.005)  # its end is not acknowledged yet
        assert timer > 10 * os.sysconf("SC_CLK_TCK")
        mine.shutdown(socket.SHUT_WR)
        assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def fin_wait_2(port: int) -> int:
    """How long an end with this port stays in FIN_WAIT2, in clock ticks; 0 if there is none (proc_net_tcp.rst)."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    found = (int(row[5].split(":")[1], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "05")
    return next(found, 0)

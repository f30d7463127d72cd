"""The states have the kernel's numbers."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from torpor.objects.sockets.tcp_states import State


def state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_they_are_those_of_real_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as fresh:
        assert (state(listener), state(fresh)) == (State.LISTEN, State.CLOSE)
        with socket.create_connection(listener.getsockname()) as mine:
            theirs, _ = listener.accept()
            with theirs:
                assert (state(mine), state(theirs)) == (State.ESTABLISHED, State.ESTABLISHED)
                mine.shutdown(socket.SHUT_WR)
                assert theirs.recv(1) == b""
                assert state(theirs) == State.CLOSE_WAIT
                assert state(mine) in (State.FIN_WAIT1, State.FIN_WAIT2)


def test_they_are_those_of_the_headers() -> None:
    header = Path("/usr/include/netinet/tcp.h")
    if not header.exists():
        pytest.skip("the headers of the C library are not installed")
    listed = header.read_text().partition("TCP_ESTABLISHED")[2].partition("}")[0]
    names = ["ESTABLISHED", *re.findall(r"TCP_(\w+)", re.sub(r"/\*.*?\*/", "", listed))]
    assert {one.name: one.value for one in State} == {name: number for number, name in enumerate(names, 1)}

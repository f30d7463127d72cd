"""TCP connections that nobody has accepted yet: the kernel lists them, with what was received on each."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

import pytest

from torpor import procfs
from torpor.objects.sockets import tcp_backlog
from torpor.objects.sockets.tcp_backlog import Place


def listening(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"{host}: {error.strerror}")


def place(name: tuple[str, int]) -> Place:
    return ip_address(name[0]), name[1]


def found(listener: socket.socket, client: socket.socket) -> int | None:
    """The bytes that the kernel says were received on a client's connection; None if it is not listed."""
    mine = place(client.getsockname()[:2])
    one = tcp_backlog.waiting().get(((mine[0], listener.getsockname()[1]), mine))
    return one and one.received


def until(condition: Callable[[], bool]) -> None:
    """Segments on the loopback are on their way for a moment."""
    while not condition():
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_listed_until_it_is_accepted(host: str) -> None:
    with (
        closing(listening(host)) as listener,
        closing(socket.create_connection(listener.getsockname()[:2])) as client,
    ):
        assert found(listener, client) == 0
        client.send(b"before it was accepted")
        until(lambda: found(listener, client) == 22)
        accepted, _ = listener.accept()
        with accepted:
            assert found(listener, client) is None


def test_the_end_of_a_client_is_no_byte() -> None:
    with closing(listening("127.0.0.1")) as listener:
        with closing(socket.create_connection(listener.getsockname())) as client:
            client.send(b"all")
            client.shutdown(socket.SHUT_WR)
            until(lambda: found(listener, client) == 3)
        with closing(socket.create_connection(listener.getsockname())) as client:
            client.shutdown(socket.SHUT_WR)
            until(lambda: found(listener, client) == 0)


def test_a_client_of_ipv4_at_a_listener_of_ipv6() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with (
        closing(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)) as listener,
        closing(socket.create_connection(("127.0.0.1", listener.getsockname()[1]))) as client,
    ):
        assert found(listener, client) == 0


def test_a_host_without_ipv6_has_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    read = procfs.read

    def off(path: str) -> bytes:
        if path.endswith("tcp6"):
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(procfs, "read", off)
    with (
        closing(listening("127.0.0.1")) as listener,
        closing(socket.create_connection(listener.getsockname())) as client,
    ):
        assert found(listener, client) == 0


def test_a_connection_without_a_byte_is_deferred() -> None:
    with closing(listening("127.0.0.1")) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 600)
        with closing(socket.create_connection(listener.getsockname())) as client:
            ends = ((place(client.getsockname())[0], listener.getsockname()[1]), place(client.getsockname()))
            assert tcp_backlog.waiting()[ends] == (0, True)
            client.send(b".")
            until(lambda: tcp_backlog.waiting()[ends] == (1, False))

"""TCP sockets that have released the port which their address names."""

from __future__ import annotations

import socket

import pytest

from torpor.image.image_pb2 import TcpSocket
from torpor.objects.sockets import addresses, sock_diag, tcp_released


def released() -> socket.socket:
    """A socket that named a port of the kernel's choice, and has released it."""
    one = socket.create_server(("127.0.0.1", 0))
    one.shutdown(socket.SHUT_RDWR)
    return one


def has_released(one: socket.socket) -> bool:
    return tcp_released.has_released(one.fileno(), addresses.local_name(one.fileno()), v6only=False)


def test_a_port_that_is_held_is_told_from_one_that_was_released() -> None:
    with released() as one, socket.socket() as other:
        assert has_released(one)
        other.bind(("127.0.0.1", 0))
        assert not has_released(other)


def test_also_if_another_has_it_by_now() -> None:
    with released() as one, socket.create_server(one.getsockname()) as other:
        assert has_released(one)
        other.shutdown(socket.SHUT_RDWR)
        assert not has_released(other), "bind() named the port"


def test_where_the_kernel_does_not_list_bound_sockets_the_port_counts_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "bound_tcp", lambda family: set[int]())
    with released() as one, socket.create_server(one.getsockname()):
        assert not has_released(one)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_an_address_whose_port_is_free(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as before:
        before.bind((host, 0))
        name = addresses.local_name(before.fileno())
        tcp = TcpSocket(state=TcpSocket.CLOSED, released=True, family=family, local=name)
        with tcp_released.make(tcp) as one:
            assert not addresses.address(addresses.local_name(one.fileno())).port, "it is taken"
    with tcp_released.make(tcp) as one, socket.socket(family) as other:
        assert addresses.local_name(one.fileno()) == name
        other.bind(one.getsockname())
        assert has_released(one)

"""TCP sockets of an image that do not fit together, or not this host."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from torpor import procfs
from torpor.dump.own_namespaces import OwnNamespaces
from torpor.image.image_pb2 import Description, TcpSocket, Tree
from torpor.objects.fds import descriptors
from torpor.objects.sockets import common, tcp_connections
from torpor.probe import probe
from torpor.remote.children import forked

SKIPPED = 77


def name(port: int, host: str = "127.0.0.1") -> bytes:
    """A socket address as the kernel has it."""
    return socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def pair() -> dict[int, TcpSocket]:
    """The two ends of a connection within the tree, a listener, and a connection that waits for it."""
    ends = {
        3: TcpSocket(family=2, protocol=6, state=TcpSocket.INSIDE, local=name(10), remote=name(20), peer=5),
        5: TcpSocket(family=2, protocol=6, state=TcpSocket.INSIDE, local=name(20), remote=name(10), peer=3),
        6: TcpSocket(family=2, protocol=6, state=TcpSocket.LISTEN, local=name(30)),
        7: TcpSocket(family=2, protocol=6, state=TcpSocket.PENDING, local=name(40), remote=name(30)),
    }
    ends[8] = TcpSocket(family=2, protocol=6, state=TcpSocket.INSIDE, local=name(9), remote=name(9), peer=8)
    return ends


def why(mine: dict[int, TcpSocket]) -> list[str]:
    return [reason.why for reason in tcp_connections.validate(mine)]


def test_what_fits_is_no_reason() -> None:
    assert why(pair()) == []


def change(index: int, **values: object) -> Callable[[dict[int, TcpSocket]], None]:
    def changed(mine: dict[int, TcpSocket]) -> None:
        for field, value in values.items():
            setattr(mine[index], field, value)

    return changed


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (change(3, peer=99), "the TCP socket 3 and its other end do not fit together"),
        (change(3, peer=6), "the TCP socket 3 and its other end do not fit together"),
        (change(3, peer=3), "the TCP socket 3 and its other end do not fit together"),
        (change(5, local=name(21)), "the TCP socket 3 and its other end do not fit together"),
        (change(8, remote=name(10)), "the TCP socket 8 and its other end do not fit together"),
        (change(7, remote=name(31)), "the TCP socket 7 waits to be accepted, but has no listener"),
        (change(6, local=b""), "it has a TCP socket with"),
        (change(6, local=b"\1" * 200), "it has a TCP socket with"),
        (change(6, family=1, protocol=0), "it has a TCP socket of family 1"),
        (change(6, family=44444), "address family 44444 is not available here"),
        (change(6, state=0), "it has a TCP socket in a state that is not known"),
        (change(3, released=True), "the TCP socket 3 is said to have released its port, and is connected or listens"),
        (change(6, kept="../../etc"), "it has a TCP connection that has an invalid name"),
        (change(3, kept="0123456789abcdef"), "it has a TCP connection that has an invalid name"),
    ],
)
def test_what_no_checkpoint_writes_is_refused(act: Callable[[dict[int, TcpSocket]], None], words: str) -> None:
    mine = pair()
    act(mine)
    assert any(text.startswith(words) for text in why(mine)), why(mine)


@pytest.mark.skipif(not (procfs.is_root() or probe().user_namespaces), reason="this user may have no network")
def test_a_listener_that_was_given_another_device_since_has_its_waiting_connection() -> None:
    device = b"torpor0"
    listener, client = (Description(flags=os.O_RDWR) for _ in range(2))
    listener.tcp.MergeFrom(TcpSocket(family=2, protocol=6, state=TcpSocket.LISTEN, local=name(3000), backlog=3))
    client.tcp.MergeFrom(TcpSocket(family=2, protocol=6, state=TcpSocket.PENDING, local=name(40000), remote=name(3000)))
    for one in (listener, client):
        one.tcp.options.add(level=socket.SOL_SOCKET, name=socket.SO_BINDTODEVICE, value=device + b"\0")
    image = Tree(descriptions=[listener, client])

    def make() -> None:
        OwnNamespaces()
        words = ["ip", "link", "add", device.decode(), "type", "veth", "peer", "name", "torpor1"]
        if subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode:
            os._exit(SKIPPED)
        with descriptors.open_all(image, lambda _: -1, ()) as opened:
            with socket.socket(fileno=os.dup(opened.slots[0])) as made:
                assert made.accept()[1] == ("127.0.0.1", 40000)
            for slot in opened.slots.values():
                assert common.getsockopt(slot, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == device + b"\0"
            os._exit(0)

    ended = os.waitstatus_to_exitcode(os.waitpid(forked(make), 0)[1])
    if ended == SKIPPED:
        pytest.skip("this kernel has no veth devices")
    assert ended == 0

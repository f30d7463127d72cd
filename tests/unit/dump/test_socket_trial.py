"""The sockets of an image are made once before its tree is killed: what fails there would fail in the wake."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.leaks import no_more_descriptors
from torpor import procfs
from torpor.dump import socket_trial
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.fds import descriptors
from torpor.objects.sockets import tcp_ports
from torpor.probe import probe

KEEPIDLE = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
DEVICE = tcp_ports.DEVICE

pytestmark = pytest.mark.skipif(
    not (procfs.is_root() or probe().user_namespaces), reason="this user may have no network namespace"
)


def at(host: str, port: int, family: int = socket.AF_INET) -> bytes:
    """A struct sockaddr."""
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    return struct.pack("=H", family) + struct.pack("!HI", port, 0) + socket.inet_pton(family, host) + bytes(4)


def tree(*sockets: pb.Description) -> pb.Tree:
    """A tree of one process, which has these sockets, and something else."""
    image = pb.Tree()
    image.descriptions.extend(sockets)
    image.descriptions.add(flags=os.O_RDONLY).file.path = b"/nowhere/file"
    ids = pb.Credentials(uids=[os.geteuid()] * 4, gids=[os.getegid()] * 4, groups=os.getgroups())
    fds = [pb.Fd(fd=k + 3, description=k) for k in range(len(image.descriptions))]
    image.processes.add(pid=os.getpid(), credentials=ids, fds=fds)
    return image


def listener(host: str = "127.0.0.1", port: int = 80, **options: Any) -> pb.Description:
    return tcp(host, port, state=pb.TcpSocket.LISTEN, backlog=5, **options)


def tcp(host: str, port: int, *, option: tuple[tuple[int, int], bytes] | None = None, **fields: Any) -> pb.Description:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = pb.Description(flags=os.O_RDWR)
    one.tcp.MergeFrom(pb.TcpSocket(family=family, protocol=6, local=at(host, port, family), **fields))
    if option:
        one.tcp.options.add(level=option[0][0], name=option[0][1], value=option[1])
    return one


def udp(host: str, port: int, **fields: Any) -> pb.Description:
    one = pb.Description(flags=os.O_RDWR)
    one.udp.MergeFrom(pb.UdpSocket(family=socket.AF_INET, local=at(host, port), **fields))
    return one


def unix(**fields: Any) -> pb.Description:
    one = pb.Description(flags=os.O_RDWR)
    mode = 0o755 if fields.get("name", b"\0")[:1] != b"\0" else 0
    one.unix.MergeFrom(pb.UnixSocket(type=socket.SOCK_STREAM, mode=mode, **fields))
    return one


def failures(image: pb.Tree) -> list[str]:
    with no_more_descriptors():
        found = socket_trial.made(image)
    assert not found.differences
    return list(map(str, found.failures))


def boom(*_: object, **__: object) -> NoReturn:
    raise RestoreFailed("it was tried")


def tried(image: pb.Tree, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the builder is asked at all, and does it."""
    if failures(image):
        return False
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "open_all", boom)
        return failures(image) == ["the tree: it was tried"]


@pytest.fixture
def free_port() -> int:
    """A port that an ordinary user may have."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) + 5


def test_sockets_of_all_kinds_are_made_though_the_tree_has_them(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(tmp_path, tmp_path / "link")
    name = os.fsencode(tmp_path / "name")
    with socket.socket(socket.AF_UNIX) as there, socket.socket(socket.AF_UNIX) as hidden, socket.socket() as port:
        there.bind(name)
        hidden.bind("\0torpor-socket_trial")
        port.bind(("127.0.0.1", free_port))
        port.listen()
        image = tree(
            listener(port=free_port),
            udp("127.0.0.1", free_port, messages=[b"hello"], senders=[at("127.0.0.1", free_port + 1)]),
            unix(name=name, listening=True, backlog=3),
            unix(name=os.fsencode(tmp_path / "link" / "was"), moved=True, path=os.fsencode(tmp_path / "is")),
            unix(name=b"\0torpor-socket_trial", listening=True, backlog=3),
            unix(has_peer=True, peer=6, messages=[b"with a file"], under_way=[pb.UnderWay(descriptions=[7])]),
            unix(has_peer=True, peer=5),
        )
        assert tried(image, monkeypatch)
        assert sorted(os.listdir(tmp_path)) == ["link", "name"]


@pytest.mark.parametrize(
    "one",
    [
        lambda port: listener("203.0.113.77", port),
        lambda port: listener("::", port),
        lambda port: udp("203.0.113.77", port, remote=at("192.0.2.9", 53)),
        lambda port: udp("0.0.0.0", port, remote=at("224.0.0.251", 5353)),
        lambda port: unix(connected_to=b"/dev/log"),
        lambda port: tcp("203.0.113.77", port, remote=at("192.0.2.9", 443), state=pb.TcpSocket.OUTSIDE, kept="9"),
    ],
)
def test_what_only_the_new_network_lacks_does_not_count(
    one: Callable[[int], pb.Description], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried(tree(one(free_port)), monkeypatch)


def test_only_sockets_of_another_device_are_not_made(free_port: int) -> None:
    """And those that have a port with them."""
    bound = listener(port=free_port, option=(DEVICE, b"eth99\0"))
    group = pb.Membership(family=socket.AF_INET, device="eth99", group=bytes([224, 0, 0, 251]))
    of_link = listener("fe80::1", port=free_port + 2)
    of_link.tcp.local = of_link.tcp.local[:-4] + struct.pack("=I", 99)
    apart = [bound, udp("0.0.0.0", free_port, memberships=[group]), of_link]
    assert failures(tree(*apart)) == []
    assert failures(tree(*apart, refused(free_port))) == []
    (said,) = failures(tree(*apart, refused(free_port + 1)))
    assert said == failures(tree(refused(free_port + 1)))[0]


def refused(port: int) -> pb.Description:
    """A listener that no kernel makes."""
    return listener(port=port, option=(KEEPIDLE, bytes(4)))


@pytest.mark.parametrize("what", ["sound", "backlog", "option", "message"])
def test_what_was_made_is_compared_with_the_image(what: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the code of a checkpoint. Here a builder makes something else."""
    nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    image = tree(
        listener(port=free_port, option=(nodelay, struct.pack("i", 1))),
        unix(has_peer=True, peer=2, messages=[b"one"]),
        unix(has_peer=True, peer=1),
    )
    really = descriptors.open_all

    def otherwise(tree: pb.Tree, *arguments: Any, **named: Any) -> descriptors.Opened:
        other = pb.Tree.FromString(tree.SerializeToString())
        if what == "backlog":
            other.descriptions[0].tcp.backlog = 6
        elif what == "option":
            other.descriptions[0].tcp.ClearField("options")
        elif what == "message":
            other.descriptions[1].unix.messages[0] = b"other"
        return really(other, *arguments, **named)

    monkeypatch.setattr(descriptors, "open_all", otherwise)
    found = socket_trial.made(image)
    assert not found.failures
    assert len(found.differences) == (what != "sound")
    assert what == "sound" or what in found.differences[0]


def test_a_port_is_had_by_the_rules_of_this_host(free_port: int) -> None:
    image = tree(listener(port=free_port - 10))
    assert failures(image) == [] if os.geteuid() == 0 else "this user may not have the port" in failures(image)[0]


def test_two_connections_from_one_port_that_this_host_gives_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    sockets = []
    for number in (0, 2):
        ends = at("127.0.0.1", lowest + 1), at("127.0.0.1", lowest + 11 + number)
        for one, other, connected in ((0, 1, True), (1, 0, False)):
            port, peer = lowest + (11 + number if one else 1), number + other
            end = tcp("127.0.0.1", port, remote=ends[other], peer=peer, connected=connected, state=pb.TcpSocket.INSIDE)
            sockets.append(end)
    assert tried(tree(*sockets), monkeypatch)


def test_what_the_kernel_does_not_take_again_is_told(free_port: int) -> None:
    (said,) = failures(tree(listener(port=free_port, option=(KEEPIDLE, bytes(4)))))
    assert "option 6/4 cannot be set: Invalid argument" in said
    twice = failures(tree(listener(port=free_port), listener(port=free_port, option=(KEEPIDLE, bytes(4)))))
    assert "option 6/4" in twice[0]


def test_an_error_of_the_builder_counts_and_one_of_the_host_does_not(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tree(listener(port=free_port))

    def failing(error: Exception) -> Callable[..., NoReturn]:
        def fail(*_: object, **__: object) -> NoReturn:
            raise error

        return fail

    monkeypatch.setattr(descriptors, "open_all", failing(KeyError(7)))
    assert failures(image) == ["the tree: its sockets cannot be made again: 7"]
    monkeypatch.setattr(descriptors, "open_all", failing(OSError(12, "Cannot allocate memory")))
    assert failures(image) == []


def test_without_namespaces_or_time_nothing_is_said(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tree(listener(port=free_port))
    monkeypatch.setattr(descriptors, "open_all", lambda *_, **__: time.sleep(1000))
    monkeypatch.setattr(socket_trial, "SECONDS", 0.01)
    assert failures(image) == []
    monkeypatch.undo()
    monkeypatch.setattr(descriptors, "open_all", boom)
    monkeypatch.setattr(socket_trial, "OwnNamespaces", lambda: os.close(-1))
    assert failures(image) == []


def test_a_tree_without_sockets_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_trial, "forked_with_pipe", boom)
    assert failures(tree()) == []

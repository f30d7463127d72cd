"""UDP sockets: what waits in them is sent again from whom it came, or the save is refused."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from tests.unit.objects.sockets.descriptor_sockets import sock, states
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors
from torpor.objects.sockets import common, udp

SOCKETS = """
def bound(host="127.0.0.1", family=socket.AF_INET):
    found = socket.socket(family, socket.SOCK_DGRAM); found.bind((host, 0)); return found
"""


def test_what_was_not_read_comes_again_from_whom_it_came(acting: Acting) -> None:
    """Also from one that has gone, and from the socket itself."""

    def body(_: Path) -> None:
        fds, image = dumped(
            SOCKETS
            + """
s, c, gone = bound(), bound(), bound()
for sender, content in ((c, b"one"), (gone, b"two"), (s, b"three"), (c, b"x" * 60000)):
    sender.sendto(content, s.getsockname())
was = [c.getsockname()[1], gone.getsockname()[1], s.getsockname()[1]]
gone.close()
ready(s=s.fileno(), c=c.fileno(), was=was)
wait()
"""
        )
        with opened(image) as woken, sock(woken, fds["s"]) as s, sock(woken, fds["c"]) as c:
            room = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            found = [s.recvfrom(70000) for _ in range(4)]
            assert [content for content, _ in found] == [b"one", b"two", b"three", b"x" * 60000]
            client, gone, own = fds["was"]
            assert [name[1] for _, name in found] == [client, gone, own, client]
            assert not states(s.fileno()) & select.POLLIN
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as fresh:
                assert room == fresh.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            s.sendto(b"from anybody", s.getsockname())
            c.sendto(b"again", s.getsockname())
            assert {s.recv(100), s.recv(100)} == {b"from anybody", b"again"}, "it is connected to nobody"

    acting(body)


def test_what_came_from_another_program_is_refused_while_that_lives() -> None:
    with (
        holder(SOCKETS + "s = bound()\nready(s=s.fileno(), port=s.getsockname()[1])\nwait()") as tree,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other,
    ):
        said = tree.ready()
        other.bind(("127.0.0.1", 0))
        other.sendto(b"hello", ("127.0.0.1", said["port"]))
        tree.stop()
        (reason,) = descriptors.unsupported(descriptors.grab(tree.pids))
        assert f"datagrams from 127.0.0.1:{other.getsockname()[1]} wait in it" in reason.why and reason.passing
        other.close()
        assert descriptors.unsupported(descriptors.grab(tree.pids)) == []


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_sides_that_were_shut_are_shut(acting: Acting, how: int) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(
            f"{SOCKETS}s, c = bound(), bound(); s.connect(c.getsockname()); s.shutdown({int(how)})\n"
            "ready(s=s.fileno())\nwait()"
        )
        described = next(one.udp for one in image.descriptions if one.WhichOneof("kind") == "udp" and one.udp.remote)
        assert described.shut_read == (how != socket.SHUT_WR)
        assert described.shut_write == (how != socket.SHUT_RD)
        with opened(image) as woken, sock(woken, fds["s"]) as s:
            if how != socket.SHUT_RD:
                with pytest.raises(BrokenPipeError):
                    s.send(b"x")
            if how != socket.SHUT_WR:
                assert s.recv(10) == b""

    acting(body)


def test_empty_datagrams_are_kept_and_one_that_may_be_missing_is_told() -> None:
    code = SOCKETS + "s = bound()\nfor m in (b'first', b'', b'last'): s.sendto(m, s.getsockname())\nready()\nwait()"
    with holder(code) as tree:
        tree.ready()
        tree.stop()
        first = descriptors.grab(tree.pids)
        assert descriptors.unsupported(first) == [] and list(descriptors.notices(first)) == []
        again = descriptors.grab(tree.pids)
        assert descriptors.unsupported(again) == []
        (notice,) = descriptors.notices(again)
        assert notice.startswith("empty datagrams that wait in UDP sockets may be missing")


def test_what_is_held_back_is_refused() -> None:
    code = f"{SOCKETS}s, c = bound(), bound(); s.connect(c.getsockname()); s.send(b'held', {socket.MSG_MORE})\n"
    with holder(code + "ready()\nwait()") as tree:
        tree.ready()
        (reason,) = tree.survey()
        assert "UDP_CORK, MSG_MORE" in reason.why and reason.passing


def image_of(where: tuple[str, int], **fields: object) -> Tree:
    image = Tree()
    found = image.descriptions.add().udp
    found.family = socket.AF_INET
    host, port = where
    found.local = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(found, name).extend(value)
        else:
            setattr(found, name, value)
    return image


def why(image: Tree) -> list[str]:
    mine = {0: image.descriptions[0]}
    kind = udp.Udp()
    return [one.why for one in (*kind.validate(mine, image, (0, 1, 2)), *kind.validate_free(mine, image))]


def test_an_address_that_this_host_has_not_got_or_that_is_taken() -> None:
    assert why(image_of(("127.0.0.1", 0))) == []
    assert why(image_of(("192.0.2.1", 9))) == ["this host does not have the address"]
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as taken:
        taken.bind(("127.0.0.1", 0))
        assert why(image_of(taken.getsockname())) == ["the port is taken"]


@pytest.mark.parametrize(
    "fields",
    [{"family": socket.AF_UNIX}, {"local": b"\x02\0"}, {"remote": b"junk"}, {"messages": [b"x"]}, {"senders": [b""]}],
)
def test_an_image_that_nobody_wrote_is_told_in_words(fields: dict[str, object]) -> None:
    image = image_of(("127.0.0.1", 9), **fields)
    found = list(udp.Udp().validate({0: image.descriptions[0]}, image, (0, 1, 2)))
    assert found and found[0].subject == "the image"


def test_a_datagram_that_does_not_arrive_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "PATIENCE", 0.01)
    monkeypatch.setattr(common, "used_memory", lambda fd: 0)
    _, image = dumped(SOCKETS + "s = bound(); s.sendto(b'x', s.getsockname())\nready()\nwait()")
    with (
        pytest.raises(RestoreFailed, match="that was not read does not arrive again"),
        descriptors.open_all(image, shared=lambda index: os.dup(0)),
    ):
        pass

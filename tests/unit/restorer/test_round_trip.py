"""What two images of one tree may differ in, and that nothing else is passed over."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from torpor.image import image_pb2 as pb
from torpor.objects.sockets.tcp_ports import IPPROTO_MPTCP
from torpor.restorer.expected_differences import ALLOWED
from torpor.restorer.round_trip import differences

MOST = 6
"""How deep messages of an image lie in one another."""


def fields(kind: Descriptor, path: str = "", depth: int = 0) -> Iterator[tuple[str, list[FieldDescriptor]]]:
    """Every field of an image that holds a value, by its path, with the fields that lead to it."""
    for field in kind.fields if depth < MOST else ():
        if field.message_type is None:
            yield f"{path}{field.name}", [field]
        else:
            for below, way in fields(field.message_type, f"{path}{field.name}.", depth + 1):
                yield below, [field, *way]


EVERY = dict(fields(pb.DESCRIPTOR.message_types_by_name["Tree"]))
FREE = {one.path.removesuffix("[]") for one in ALLOWED}
GIVEN = ("descriptions.outside", "ptys.outside")
"""What who wakes a tree gives it: standard input, output and error, and a terminal."""


def changed(image: pb.Tree, way: list[FieldDescriptor]) -> None:
    """Give a field of an empty image a value, and a message to all that lead to it."""
    message: Any = image
    for field in way[:-1]:
        inner = getattr(message, field.name)
        message = inner.add() if hasattr(inner, "add") else inner
    last = way[-1]
    value: Any = 7
    if last.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        value = b"seven" if last.type == FieldDescriptor.TYPE_BYTES else "seven"
    elif last.cpp_type in (FieldDescriptor.CPPTYPE_BOOL, FieldDescriptor.CPPTYPE_ENUM):
        value = 1
    if hasattr(getattr(message, last.name), "append"):
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


@pytest.mark.parametrize(
    ("soft", "hard", "allowed"), [(5, 5, True), (3, 5, False), (5, 9, False), (9, 9, False), (4, 10, False)]
)
def test_a_limit_may_only_be_lowered_to_that_of_who_wakes_it(soft: int, hard: int, allowed: bool) -> None:
    """As on a host with less memory, where all may have fewer processes; a warning says so."""
    was, now = pb.Tree(), pb.Tree()
    was.processes.add().limits.add(resource=6, soft=7, hard=10)
    now.processes.add().limits.add(resource=6, soft=soft, hard=hard)
    assert (differences(was, now, built=True) == []) is allowed


def test_what_is_allowed_is_there() -> None:
    messages = {path.rpartition(".")[0] for path in EVERY} | {path.split(".")[0] for path in EVERY}
    assert {path for path in FREE if path not in EVERY and path not in messages} == set()


@pytest.mark.parametrize("path", sorted(EVERY))
def test_a_difference_is_told(path: str) -> None:
    """In each field, but for those that are listed."""
    plain, image = referred(), referred()
    changed(image, EVERY[path])
    assert not differences(image, image)
    parts = path.split(".")
    if not FREE.intersection(".".join(parts[:end]) for end in range(1, len(parts) + 1)) and not path.startswith(GIVEN):
        assert differences(plain, image) or differences(image, plain)


def referred() -> pb.Tree:
    """An image with descriptions and terminals that others may refer to."""
    image = pb.Tree()
    for number in range(8):
        image.descriptions.add(flags=number)
        image.ptys.add(number=number)
    return image


def test_an_order_is_no_difference() -> None:
    """Descriptions are numbered by who has them; what the restorer gives may be one or several, and anything."""
    one, other = pb.Tree(), pb.Tree()
    one.descriptions.add().outside.stdio = 0
    one.descriptions.add().outside.stdio = 1
    one.descriptions.add().eventfd.count = 3
    other.descriptions.add().eventfd.count = 3
    other.descriptions.add().outside.stdio = 1
    for image, numbers in ((one, (0, 1, 2)), (other, (1, 1, 0))):
        process = image.processes.add(pid=12)
        process.threads.add(tid=12, name=b"python")
        for fd, number in enumerate(numbers):
            process.fds.add(fd=fd, description=number)
    assert not differences(one, other)
    other.descriptions[0].eventfd.count = 4
    other.processes[0].fds.add(fd=9, description=0)
    assert differences(one, other) == [
        "process 12 (python): descriptor 9 was not there",
        "process 12 (python): descriptor 2: eventfd count is 4, was 3",
    ]


def test_words() -> None:
    """They name the object, and say what it is and what it was."""
    one, other = pb.Tree(), pb.Tree()
    for image, flags in ((one, os.O_RDWR | os.O_APPEND), (other, os.O_RDWR)):
        process = image.processes.add(pid=12)
        process.threads.add(tid=12, name=b"python")
        process.fds.add(fd=5)
        image.descriptions.add(flags=flags)
    assert differences(one, other) == ["process 12 (python): descriptor 5: flags are O_RDWR, were O_RDWR|O_APPEND"]


def test_mappings_side_by_side_count_as_one() -> None:
    whole, parts = pb.Tree(), pb.Tree()
    whole.processes.add().memory.vmas.add(start=4096, end=12288, kind=pb.Vma.ANONYMOUS, prot=3)
    space = parts.processes.add().memory
    space.vmas.add(start=4096, end=8192, kind=pb.Vma.ANONYMOUS, prot=3)
    space.vmas.add(start=8192, end=12288, kind=pb.Vma.ANONYMOUS, prot=3)
    assert not differences(whole, parts)
    space.vmas[1].prot = 1
    assert differences(whole, parts)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_of_a_sockets_options_one_may_be_new(kind: str) -> None:
    """IPV6_V6ONLY, which bind(2) sets; no other, and none may be missing or another."""

    def image(*options: tuple[int, int, bytes]) -> pb.Tree:
        tree = pb.Tree()
        for level, name, value in options:
            getattr(tree.descriptions.add() if not tree.descriptions else tree.descriptions[0], kind).options.add(
                level=level, name=name, value=value
            )
        return tree

    alive, shared = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, b"\1"), (socket.SOL_SOCKET, socket.SO_REUSEADDR, b"\1")
    v6only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, b"\1")
    assert not differences(image(alive), image(alive, v6only))
    assert differences(image(alive, v6only), image(alive))
    assert differences(image(alive), image(alive, shared))
    assert differences(image(alive), image(shared, v6only))


def test_what_mptcp_connects_with_stays_on() -> None:
    """Of a connection of MPTCP alone."""
    for protocol, state, allowed in (
        (IPPROTO_MPTCP, pb.TcpSocket.INSIDE, True),
        (IPPROTO_MPTCP, pb.TcpSocket.LISTEN, False),
        (0, pb.TcpSocket.INSIDE, False),
    ):
        before, after = pb.Tree(), pb.Tree()
        for image in (before, after):
            image.descriptions.add().tcp.protocol = protocol
            image.descriptions[0].tcp.state = state
        options = after.descriptions[0].tcp.options
        options.add(level=socket.SOL_SOCKET, name=socket.SO_REUSEADDR, value=b"\1")
        assert bool(differences(before, after)) != allowed
        options.add(level=socket.SOL_SOCKET, name=socket.SO_KEEPALIVE, value=b"\1")
        assert differences(before, after)


def test_of_interval_timers_only_one_that_fires_once_may_be_gone() -> None:
    def tree(*timers: tuple[int, int]) -> pb.Tree:
        image = pb.Tree()
        process = image.processes.add()
        for which, interval in timers:
            process.interval_timers.add(which=which, interval_us=interval, value_us=5)
        return image

    once, again = (signal.ITIMER_REAL, 0), (signal.ITIMER_PROF, 10)
    assert not differences(tree(once, again), tree(again))
    assert differences(tree(once, again), tree(once))
    assert differences(tree(again), tree(once, again))
    assert differences(tree(again), tree((signal.ITIMER_PROF, 11)))


def test_of_a_stop_only_the_sender_may_be_another() -> None:
    def queued(number: int, sender: int) -> pb.Tree:
        return pb.Tree(processes=[pb.Process(pid=7, pending=[struct.pack("<5i108x", number, 0, 0, 0, sender)])])

    assert not differences(queued(signal.SIGSTOP, 6), queued(signal.SIGSTOP, 0))
    assert differences(queued(signal.SIGSTOP, 6), pb.Tree(processes=[pb.Process(pid=7)]))
    assert differences(queued(signal.SIGTERM, 6), queued(signal.SIGTERM, 0))


def test_only_an_ordinary_users_bounding_set_is_that_of_who_wakes_it() -> None:
    def tree(uid: int, bounding: int, permitted: int = 0) -> pb.Tree:
        image = pb.Tree()
        told = image.processes.add().credentials
        told.uids.extend([uid] * 4)
        told.cap_bounding, told.cap_permitted = bounding, permitted
        return image

    assert not differences(tree(1000, 0), tree(1000, 7))
    assert not differences(tree(1000, 7), tree(1000, 0))
    assert differences(tree(0, 3), tree(0, 7))
    assert differences(tree(1000, 3, 1), tree(1000, 7, 1))

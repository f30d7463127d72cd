"""What lies in unix sockets' queues: seen without being taken, with the descriptors that come with it, and put back."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leaks import no_more_descriptors
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import UnderWay
from torpor.image.image_pb2 import UnixSocket as UnixMessage
from torpor.objects.sockets import buffers, common, peeking, unix_names, unix_paths, unix_queues
from torpor.objects.sockets.unix_queues import Queue
from torpor.remote.sys import syscall

STREAM, DGRAM, PACKETS = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
NOTHING = "/dev/null"


@contextmanager
def pair(kind: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends; what is sent by the first waits at the second."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        yield one, other


@contextmanager
def looked_at(sock: socket.socket) -> Iterator[Queue]:
    """Its queue; afterwards the copies of descriptors are closed."""
    state = common.look(sock.fileno(), unix_names.OPTIONS, listening=False)
    queue = unix_queues.peek(sock.fileno(), state)
    try:
        yield queue
    finally:
        for message in queue.messages:
            for right in message.rights:
                os.close(right.fd)


def contents(queue: Queue) -> list[tuple[bytes, int]]:
    return [(message.content, len(message.rights)) for message in queue.messages]


def devices(count: int) -> list[int]:
    return [os.open(NOTHING, os.O_RDONLY) for _ in range(count)]


def send(sock: socket.socket, content: bytes, descriptors: int = 0) -> None:
    """Send it at once, with so many descriptors."""
    fds = devices(descriptors)
    try:
        socket.send_fds(sock, [content], fds)
    finally:
        for fd in fds:
            os.close(fd)


pieces = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3)), min_size=1, max_size=12)


@given(pieces)
def test_a_stream_is_cut_where_descriptors_come(sent: list[tuple[int, int]]) -> None:
    """As whoever reads it gets it: they come with the first byte of what was sent with them."""
    numbers = count(1)
    parts = [(bytes([next(numbers)]) * size, descriptors) for size, descriptors in sent]
    with no_more_descriptors(), pair(STREAM) as (near, far):
        for content, descriptors in parts:
            send(near, content, descriptors)
        with looked_at(far) as queue:
            assert queue.lost == ""
            assert b"".join(content for content, _ in contents(queue)) == b"".join(content for content, _ in parts)
            begins, at = {}, 0
            for content, descriptors in contents(queue):
                if descriptors:
                    begins[at] = descriptors
                at += len(content)
            wanted, at = {}, 0
            for content, descriptors in parts:
                if descriptors:
                    wanted[at] = descriptors
                at += len(content)
            assert begins == wanted
        assert far.getsockopt(socket.SOL_SOCKET, peeking.SO_PEEK_OFF) < 0
        assert far.recv(1) == parts[0][0][:1], "nothing was taken"


@pytest.mark.parametrize("kind", [DGRAM, PACKETS])
def test_messages_keep_their_bounds_and_their_descriptors(kind: int) -> None:
    sent = [(b"one", 0), (b"", 0), (b"three", 2), (b"x" * 100_000, 1)]
    with no_more_descriptors(), pair(kind) as (near, far):
        for content, descriptors in sent:
            send(near, content, descriptors)
        with looked_at(far) as queue:
            assert (contents(queue), queue.lost) == (sent, "")
            for message in queue.messages:
                assert all(os.fstat(right.fd).st_rdev == os.stat(NOTHING).st_rdev for right in message.rights)
        for content, _ in sent:
            assert far.recv(200_000) == content


def test_an_empty_message_that_an_earlier_look_was_shown_is_missed_aloud() -> None:
    """The kernel shows one behind the first only once."""
    with pair(DGRAM) as (near, far):
        for content in (b"first", b"", b"last"):
            send(near, content)
        with looked_at(far) as queue:
            assert contents(queue) == [(b"first", 0), (b"", 0), (b"last", 0)]
        with looked_at(far) as queue:
            assert "an empty message may wait in it" in queue.lost
        assert [far.recv(10) for _ in range(3)] == [b"first", b"", b"last"]


def test_the_end_of_a_connection_is_no_message() -> None:
    with pair(PACKETS) as (near, far):
        send(near, b"last")
        near.close()
        with looked_at(far) as queue:
            assert (contents(queue), queue.lost) == ([(b"last", 0)], "")
        assert (far.recv(10), far.recv(10)) == (b"last", b"")
        with looked_at(far) as queue:
            assert (contents(queue), queue.lost) == ([], "")


def test_what_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair(STREAM) as (near, far):
        near.send(b"before")
        near.send(b"u", socket.MSG_OOB)
        with looked_at(far) as queue:
            assert "urgent data" in queue.lost
    with pair(DGRAM) as (near, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with looked_at(far) as queue:
            assert queue.lost == "", "nothing waits in it"
        near.send(b"")
        with looked_at(far) as queue:
            assert "credentials of their senders" in queue.lost
    with pair(DGRAM) as (near, far):
        near.send(b"x" * 5000)
        monkeypatch.setattr(unix_queues, "LONGEST_MESSAGE", 4000)
        with looked_at(far) as queue:
            assert "a message of more than 4000 bytes" in queue.lost


def test_descriptors_for_which_there_is_no_room_here_are_not_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with no_more_descriptors(), pair(STREAM) as (near, far):
        send(near, b"x", 3)
        monkeypatch.setattr(unix_queues, "CONTROL_ROOM", 24)
        with looked_at(far) as queue:
            assert "descriptors are on their way to it (SCM_RIGHTS) that this process cannot have" in queue.lost


def test_a_look_that_fails_leaves_no_descriptor_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_more_descriptors(), pair(STREAM) as (near, far):
        send(near, b"first", 2)
        send(near, b"second", 1)
        state = common.look(far.fileno(), unix_names.OPTIONS, listening=False)

        def fails(*_: object) -> int:
            raise OSError("no")

        monkeypatch.setattr(unix_queues, "_before_rights", fails)
        with pytest.raises(OSError, match="no"):
            unix_queues.peek(far.fileno(), state)
        assert far.getsockopt(socket.SOL_SOCKET, peeking.SO_PEEK_OFF) < 0


def filled(kind: int, unix: UnixMessage, slots: Sequence[int]) -> list[tuple[bytes, int]]:
    """What a new socket has in its queue that is filled from an image."""
    with pair(kind) as (near, far):
        size = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        unix_queues.fill(near, unix, dict(enumerate(slots)))
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= size
        with looked_at(far) as queue:
            assert queue.lost == ""
            return contents(queue)


def test_a_queue_is_filled_again_with_descriptors() -> None:
    slots = devices(3)
    under_way = [UnderWay(message=1, descriptions=[2, 0]), UnderWay(message=2, descriptions=[1])]
    messages = [b"plain", b"with two", b"with one", b"plain again"]
    unix = UnixMessage(messages=messages, under_way=under_way)
    wanted = [(b"plain", 0), (b"with two", 2), (b"with one", 1), (b"plain again", 0)]
    with no_more_descriptors():
        assert filled(PACKETS, unix, slots) == wanted
        assert filled(STREAM, unix, slots) == wanted
        assert filled(DGRAM, UnixMessage(messages=[b"", b"x", b""]), slots) == [(b"", 0), (b"x", 0), (b"", 0)]
    for fd in slots:
        os.close(fd)


def test_datagrams_are_sent_to_a_name_as_long_as_it_can_be() -> None:
    """108 bytes, without a zero at the end."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX, DGRAM) as far:
        name = os.fsencode(folder) + b"/"
        name += b"n" * (unix_paths.LONGEST - len(name))
        syscall(NR.bind, far.fileno(), *unix_paths.address(name))
        with socket.socket(socket.AF_UNIX, DGRAM) as near:
            unix_queues.fill(near, UnixMessage(messages=[b"one", b"", b"two"]), {}, [0, 2], name)
        assert (far.recv(10), far.recv(10)) == (b"one", b"two")


def test_a_queue_that_was_longer_than_a_new_socket_takes_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3 << 20)
    with pair(STREAM) as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        if not buffers.enlarge(near, socket.SO_SNDBUF):
            pytest.skip("this host's limit of buffers (net.core.wmem_max) is the usual size")
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        room = 100_000
        unix_queues.fill(near, UnixMessage(messages=[content[:room]]), {})
        assert far.recv(room, socket.MSG_WAITALL) == content[:room]
        monkeypatch.setattr(buffers, "enlarge", lambda *_: False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(RestoreFailed, match="no room for its queued messages"):
            unix_queues.fill(near, UnixMessage(messages=[content]), {})

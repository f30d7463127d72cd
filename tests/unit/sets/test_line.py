"""Messages of a star: only the other end can have said them, in this order."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from google.protobuf.message import DecodeError

from torpor.sets.line import Line
from torpor.sets.sets_pb2 import Words


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    one, other = Line(near, middle=False), Line(far, middle=True)
    one.key = other.key = bytes(32)
    with near, far:
        yield one, other


def test_in_pieces(ends: tuple[Line, Line]) -> None:
    one, other = ends
    for number in range(3):
        one.say(Words(step=str(number), mine=bytes(1000)), time.monotonic() + 10)
    found: list[str] = []
    while len(found) < 3:
        other.fill()
        while (words := other.receive(Words, 2000)) is not None:
            found.append(words.step)
    assert found == ["0", "1", "2"]
    assert other.receive(Words, 2000) is None


def test_ones_own_words_sent_back_are_not_believed(ends: tuple[Line, Line]) -> None:
    one, other = ends
    one.say(Words(step="a"), time.monotonic() + 10)
    other.send(other.sock.recv(1000), time.monotonic() + 10)
    one.fill()
    with pytest.raises(DecodeError, match="a message whose key is wrong"):
        one.receive(Words, 2000)


def test_the_end(ends: tuple[Line, Line]) -> None:
    one, other = ends
    one.close()
    with pytest.raises(EOFError):
        other.fill()

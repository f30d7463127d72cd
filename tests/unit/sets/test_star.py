"""The star of TCP connections: who may take part, and what is said if a part fails."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from torpor.errors import PartFailed
from torpor.sets import star
from torpor.sets.sets_pb2 import Words
from torpor.sets.star import Star
from torpor.sets.transport import MOST_WORDS

KEY = bytes(range(32))
LOCAL = "127.0.0.1"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def made(parts: int, pool: ThreadPoolExecutor, stack: ExitStack) -> list[Star]:
    listening = stack.enter_context(star.listen(parts, KEY, LOCAL))
    others = [pool.submit(star.join, listening.address, part, parts, KEY) for part in range(1, parts)]
    found = [listening.meet(), *(one.result() for one in others)]
    for one in found:
        stack.enter_context(one)
    return found


def together(
    pool: ThreadPoolExecutor, stars: Sequence[Star], step: str, seconds: float = 30.0, mine: bytes = b""
) -> list[Future[list[bytes]]]:
    futures = [pool.submit(one.gather, step, mine, seconds) for one in stars]
    for one in futures:
        one.exception()
    return futures


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_each_hears_all_in_order(parts: int, pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(parts, pool, stack)
        wanted = [b"%d" % part for part in range(parts)]
        for step in range(20):
            futures = [pool.submit(one.gather, str(step), b"%d" % one.part, 10) for one in reversed(stars)]
            assert [one.result() for one in futures] == [wanted] * parts
        assert {one.address for one in stars} == {LOCAL}
        assert [(one.part, one.parts) for one in stars] == [(part, parts) for part in range(parts)]


def test_as_much_as_is_allowed_and_no_more(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(3, pool, stack)
        large = os.urandom(MOST_WORDS)
        assert [one.result() for one in together(pool, stars, "a", mine=large)] == [[large] * 3] * 3
        first, second = (pool.submit(one.gather, "b", large, 10) for one in stars[:2])
        third = pool.submit(stars[2].gather, "b", bytes(MOST_WORDS + 1), 10)
        with pytest.raises(PartFailed, match="this part has 1048577 bytes to tell the others, and may have 1048576"):
            third.result()
        for one in (first, second):
            with pytest.raises(PartFailed, match=r"part 2 on .*: its agent has ended"):
                one.result()


def test_one_that_has_ended_is_named_to_all(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(4, pool, stack)
        stars[2].close()
        for one in together(pool, (stars[0], *stars[1::2]), "a"):
            with pytest.raises(PartFailed, match=rf"^part 2 on {re.escape(socket.gethostname())}: its agent has ended"):
                one.result()
        with pytest.raises(PartFailed):  # and it stays so
            stars[1].gather("b", b"", 60)


def test_the_middle_has_ended(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(3, pool, stack)
        stars[0].close()
        for one in together(pool, stars[1:], "a"):
            with pytest.raises(PartFailed, match=r"part 0 on 127.0.0.1: its agent has ended"):
                one.result()


def test_one_that_is_silent_is_named_to_all(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(3, pool, stack)
        for one in together(pool, stars[:2], "a", 0.3):
            with pytest.raises(PartFailed, match=r"part 2 on .*: it said nothing for too long, at the step 'a'"):
                one.result()


def test_one_at_another_step_is_named_to_all(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(3, pool, stack)
        for one in [pool.submit(one.gather, "ab"[one.part == 1], b"", 30) for one in stars]:
            with pytest.raises(PartFailed, match=r"part 1 on .*: it is at another step: 'b', and the others at 'a'"):
                one.result()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (lambda _: b"\xff" * 100, "a message of 4294967295 bytes"),
        (lambda _: struct.pack(">I", 1 << 31) + bytes(100), "a message of 2147483648 bytes"),
        (lambda _: struct.pack(">I", 4) + bytes(36), "a message whose key is wrong"),
        (lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]), "a message whose key is wrong"),
        (lambda frame: b"GET" + frame, "a message of"),
    ],
)
def test_nonsense_is_named_to_all(said: Callable[[bytes], bytes], why: str, pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(3, pool, stack)
        line = stars[2]._lines[0]
        body = Words(step="a", mine=b"x" * 100).SerializeToString()
        frame = struct.pack(">I", len(body)) + line._mac(b"k", 1, body) + body
        line.send(said(frame), time.monotonic() + 30)
        for one in together(pool, stars[:2], "a"):
            with pytest.raises(PartFailed, match=f"part 2 on .*: it says what is not understood: {why}"):
                one.result()


def test_a_message_cannot_be_said_again(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        stars = made(2, pool, stack)
        line = stars[1]._lines[0]
        body = Words(step="a", mine=b"x").SerializeToString()
        frame = struct.pack(">I", len(body)) + line._mac(b"k", 1, body) + body
        line.send(frame, time.monotonic() + 30)
        assert stars[0].gather("a", b"y", 30) == [b"y", b"x"]
        line.send(frame, time.monotonic() + 30)
        with pytest.raises(PartFailed, match="a message whose key is wrong"):
            stars[0].gather("a", b"y", 30)


def test_strangers_keep_nobody_waiting_and_are_not_let_in(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(star.listen(2, KEY, LOCAL))
        meeting = pool.submit(listening.meet, 30)
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n" * 10, bytes(32), os.urandom(4000)):
            stack.enter_context(socket.create_connection(listening.address)).sendall(said)
        with pytest.raises(PartFailed, match="has another key"):
            star.join(listening.address, 1, 2, bytes(32), 10)
        other = stack.enter_context(star.join(listening.address, 1, 2, KEY, 10))
        stack.enter_context(meeting.result())
        assert other.part == 1


def test_a_wrong_middle_is_not_believed(pool: ThreadPoolExecutor) -> None:
    """It does not have the key, and says again what it hears."""
    with socket.create_server((LOCAL, 0)) as false:

        def serve() -> None:
            sock, _ = false.accept()
            with sock:
                nonce = sock.recv(32)
                sock.sendall(nonce + bytes(32))
                sock.recv(1)

        served = pool.submit(serve)
        with pytest.raises(PartFailed, match="has another key, or is something else"):
            star.join(false.getsockname(), 1, 2, KEY, 10)
        served.result()


@pytest.mark.parametrize(("part", "parts"), [(1, 3), (3, 4)])
def test_of_another_set(part: int, parts: int, pool: ThreadPoolExecutor) -> None:
    with star.listen(2, KEY, LOCAL) as listening:
        meeting = pool.submit(listening.meet, 0.5)
        with star.join(listening.address, part, parts, KEY, 10) as other, pytest.raises(PartFailed):
            other.gather("a", b"", 10)
        with pytest.raises(PartFailed, match=r"1 parts did not come within 0\.5 s: 1;"):
            meeting.result()


def test_two_of_one_number(pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(star.listen(3, KEY, LOCAL))
        meeting = pool.submit(listening.meet, 30)
        for _ in range(2):
            stack.enter_context(star.join(listening.address, 1, 3, KEY, 10))
        with pytest.raises(PartFailed, match="two agents say that they are part 1"):
            meeting.result()


def test_part_0_may_come_last(pool: ThreadPoolExecutor) -> None:
    with socket.create_server((LOCAL, 0)) as reserved:
        address = reserved.getsockname()
    started = threading.Event()

    def join() -> Star:
        started.set()
        return star.join(address, 1, 2, KEY, 30)

    other = pool.submit(join)
    started.wait()
    with star.listen(2, KEY, *address) as listening, listening.meet(), other.result():
        pass


def test_nobody_listens() -> None:
    with socket.create_server((LOCAL, 0)) as reserved:
        address = reserved.getsockname()
    with pytest.raises(PartFailed, match="cannot be reached: Connection refused"):
        star.join(address, 1, 2, KEY, 0.1)


@pytest.mark.parametrize(("part", "parts"), [(-1, 2), (2, 2), (0, 0), (1, 5000)])
def test_impossible_numbers(part: int, parts: int) -> None:
    with pytest.raises(ValueError, match=f"part {part} of {parts}"):
        star.join((LOCAL, 1), part, parts, KEY)

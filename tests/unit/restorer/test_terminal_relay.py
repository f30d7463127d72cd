"""A woken job's own terminal: bytes go both ways, and the job is hung up only when the terminal outside is."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.leaks import no_more_descriptors
from torpor.image.image_pb2 import Pty
from torpor.restorer.terminal_relay import Relay, _Way


class Job:
    """Stands for a job, which ends when `act` has returned."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.tree_pid = os.getpid()
        self._act = act

    def foreground(self, on_signal: Callable[[int], bool], on_stop: Callable[[int], object]) -> int:
        self._act()
        return 7


class Terminals:
    """The terminal outside, as a person sees it, and the job's side of its own."""

    def __init__(self) -> None:
        self.person, self.outer = os.openpty()
        tty.setraw(self.outer)
        self.relay = Relay(self.outer)
        self.job = os.dup(self.relay.open(Pty()))
        self._left = [self.outer, self.person, self.job]

    def run(self, act: Callable[[], object]) -> None:
        """Carry bytes while `act` runs."""
        job: Any = Job(act)
        assert self.relay.foreground(job) == 7

    def hang_up(self) -> None:
        """The person's end goes away."""
        self._left.remove(self.person)
        os.close(self.person)

    def close(self) -> None:
        for fd in self._left:
            os.close(fd)


@pytest.fixture
def terminals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminals]:
    monkeypatch.setattr(Relay, "_in_foreground", lambda _: True)
    with no_more_descriptors():
        found = Terminals()
        try:
            yield found
        finally:
            found.close()


def read(fd: int, count: int) -> bytes:
    """So many bytes from a terminal."""
    found = b""
    while len(found) < count:
        found += os.read(fd, count - len(found))
    return found


def test_bytes_go_both_ways_and_the_end_of_the_output_arrives(terminals: Terminals) -> None:
    def act() -> None:
        os.write(terminals.person, b"typed")
        assert read(terminals.job, 5) == b"typed"
        os.write(terminals.job, b"shown")
        assert read(terminals.person, 5) == b"shown"
        os.write(terminals.job, b"the last words")

    terminals.run(act)
    assert read(terminals.person, 14) == b"the last words"


def test_output_is_shown_while_the_job_does_not_read(terminals: Terminals) -> None:
    def act() -> None:
        fcntl.fcntl(terminals.person, fcntl.F_SETFL, os.O_NONBLOCK)
        written = 0
        while written < 300_000:
            try:
                written += os.write(terminals.person, b"t" * 1000)
            except BlockingIOError:  # everything on the way is full
                break
        fcntl.fcntl(terminals.person, fcntl.F_SETFL, 0)
        os.write(terminals.job, b"still shown")
        assert read(terminals.person, 11) == b"still shown"
        termios.tcflush(terminals.job, termios.TCIFLUSH)

    terminals.run(act)


def test_what_another_one_has_read_meanwhile_is_no_hang_up(
    terminals: Terminals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that has the terminal for a moment reads from it as well: what was seen to be there is gone then."""
    real = os.read
    stolen: list[bytes] = []

    def contended(fd: int, count: int) -> bytes:
        if not stolen and fd == terminals.relay._screen:
            stolen.append(real(fd, count))
            raise BlockingIOError
        return real(fd, count)

    def act() -> None:
        os.write(terminals.person, b"to the shell")
        while not stolen:
            os.sched_yield()
        os.write(terminals.person, b"to the job")
        assert read(terminals.job, 10) == b"to the job"

    monkeypatch.setattr(os, "read", contended)
    terminals.run(act)
    assert stolen == [b"to the shell"]


def test_the_job_is_hung_up_with_the_terminal(terminals: Terminals) -> None:
    def act() -> None:
        hung_up = select.poll()
        hung_up.register(terminals.job, 0)
        terminals.hang_up()
        ((_, events),) = hung_up.poll()
        assert events & select.POLLHUP

    terminals.run(act)


def test_the_terminal_has_its_modes_and_the_job_the_size(terminals: Terminals) -> None:
    before = termios.tcgetattr(terminals.outer)
    size = struct.pack("4H", 33, 44, 0, 0)
    fcntl.ioctl(terminals.outer, termios.TIOCSWINSZ, size)

    def act() -> None:
        os.write(terminals.job, b"x")
        read(terminals.person, 1)  # it carries by now
        assert fcntl.ioctl(terminals.job, termios.TIOCGWINSZ, bytes(8)) == size

    terminals.run(act)
    assert termios.tcgetattr(terminals.outer) == before


def test_a_way_keeps_what_its_target_does_not_take() -> None:
    source, target = os.pipe(), os.pipe()
    for fd in (source[0], target[1]):
        os.set_blocking(fd, False)
    way = _Way(source[0], target[1])
    try:
        assert way.take() is None, "nothing is there yet"
        os.write(source[1], b"x" * 60_000)
        while way.has_room:
            way.take()
            os.write(source[1], b"x" * 60_000)
        room = len(os.read(target[0], 1 << 20))
        assert way.give() and len(way.waiting) > 0 and room > 0
        os.close(target[0])
        assert not way.give() and not way.waiting, "the target is gone"
        os.close(source[1])
        while (got := way.take()) != b"":
            assert got
    finally:
        os.close(source[0])
        os.close(target[1])

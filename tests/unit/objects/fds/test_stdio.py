"""What leads outside is replaced by what the restorer has: by its number, and only by one of three."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, opened
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors
from torpor.objects.fds.stdio import TIOCGDEV, Terminal, asked_number


def test_pipes_of_whoever_started_it_become_the_restorers(acting: Acting) -> None:
    """With O_NONBLOCK as the program had it, and no other flag of the program's."""

    def body(tmp: Path) -> None:
        code = "os.set_blocking(1, False); copy = os.dup(1); fcntl.fcntl(0, fcntl.F_SETFD, 1)\nready(copy=copy)\nwait()"
        fds, image = dumped(code)
        ours = [os.open(tmp / name, os.O_RDWR | os.O_CREAT | os.O_APPEND) for name in ("0", "1", "2")]
        with opened(image, stdio=ours) as woken:
            assert os.path.samestat(os.fstat(woken(0)), os.fstat(ours[0]))
            assert os.path.samestat(os.fstat(woken(1)), os.fstat(ours[1]))
            assert woken(fds["copy"]) == woken(1)
            assert (os.get_blocking(woken(0)), os.get_blocking(woken(1))) == (True, False)
        assert {entry.fd: entry.cloexec for entry in image.processes[0].fds}[0]
        for fd in ours:
            os.close(fd)

    acting(body)


def test_a_standard_descriptor_that_is_closed_here_is_told() -> None:
    _, image = dumped("ready()\nwait()")
    reader, writer = os.pipe()
    os.close(writer)
    closed = writer
    reasons = descriptors.validate(image, (0, closed, 2))
    assert [(one.subject, one.why) for one in reasons] == [
        ("descriptor 1", "the program has it, and here it is closed")
    ]
    os.close(reader)


@pytest.mark.parametrize("number", [3, 1 << 31])
def test_an_image_names_no_other_descriptor_of_ours(number: int) -> None:
    image = Tree()
    image.descriptions.add().outside.stdio = number
    (reason,) = Terminal().validate({0: image.descriptions[0]}, image, (0, 1, 2))
    assert reason.why == f"it names {number} as a standard descriptor"


def test_what_is_no_terminal_has_no_number() -> None:
    master, slave = pty.openpty()
    with open("/dev/null") as null:
        assert asked_number(null.fileno(), TIOCGDEV) is None
    assert asked_number(slave, TIOCGDEV) == os.fstat(slave).st_rdev
    os.close(master)
    os.close(slave)

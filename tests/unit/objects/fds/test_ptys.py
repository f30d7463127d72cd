"""Pseudo terminals of a tree: both sides, settings and window come back; a side that others have does not."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, dumped, holder, opened
from torpor.errors import Refused
from torpor.objects.fds import ptys

MAKE = """
import pty, termios
m, s = pty.openpty()
mode = termios.tcgetattr(s)
mode[3] &= ~(termios.ECHO | termios.ICANON)
mode[6][termios.VINTR] = b"x"
termios.tcsetattr(s, termios.TCSANOW, mode)
fcntl.ioctl(s, termios.TIOCSWINSZ, struct.pack("4H", 33, 44, 0, 0))
"""


def test_a_terminal_comes_back_with_its_settings(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(MAKE + "ready(m=m, s=s)\nwait()\n")
        (pty,) = image.ptys
        assert struct.unpack("4H", pty.window)[:2] == (33, 44)
        with opened(image) as woken:
            master, slave = woken(fds["m"]), woken(fds["s"])
            mode = termios.tcgetattr(slave)
            assert not mode[3] & (termios.ECHO | termios.ICANON) and mode[6][termios.VINTR] == b"x"
            assert fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))[:4] == struct.pack("2H", 33, 44)
            os.write(master, b"typed")
            assert os.read(slave, 10) == b"typed"
            os.write(slave, b"shown")
            assert os.read(master, 10) == b"shown"

    acting(body)


def test_a_master_without_a_slave_side_is_one_again(acting: Acting) -> None:
    def body(_: Path) -> None:
        fds, image = dumped(MAKE + "os.close(s)\nready(m=m)\nwait()\n")
        assert image.ptys[0].ended
        with opened(image) as woken:
            assert os.isatty(woken(fds["m"]))

    acting(body)


OUTSIDE = """
if os.fork() == 0:
    os.close(m); time.sleep(1000)
os.close(s); ready(m=m)
wait()
"""


def test_a_side_that_is_outside_is_refused() -> None:
    with holder(MAKE + OUTSIDE) as tree:
        tree.ready()  # the child is no part of the tree
        (reason,) = tree.survey()
        assert "its other side is open outside of the tree" in reason.why


def test_what_was_typed_and_not_read_is_refused() -> None:
    with holder(MAKE + "os.write(m, b'typed')\nready(m=m, s=s)\nwait()\n") as tree:
        tree.ready()
        with pytest.raises(Refused, match="5 bytes that were typed were not read"):
            tree.dump()


def test_a_master_that_cannot_be_looked_at_is_not_taken_for_one_without_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the tree stands still no descriptor is closed: what the kernel refuses fails the save."""

    def none_left(*_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with holder(MAKE + "os.write(s, b'shown')\nready(m=m, s=s)\nwait()\n") as tree:
        tree.ready()
        monkeypatch.setattr(ptys, "descriptor_of", none_left)
        assert tree.survey() == []
        with pytest.raises(OSError, match="Too many open files"):
            tree.dump()

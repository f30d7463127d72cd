"""A job on a terminal: frozen on one, woken on another, with its keyboard and its Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.users import BIN, User

PROGRAM = """
import sys
try:
    total = 0
    print("ready", flush=True)
    for line in sys.stdin:
        total += int(line)
        print("total", total, flush=True)
except KeyboardInterrupt:
    print("interrupted at", total, flush=True)
    sys.exit(5)
"""
# Makes the terminal its session's own, as a login does, and becomes the command.
LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal with a command on it, in a session of its own."""

    def __init__(self, user: User, *command: str) -> None:
        self.master, slave = pty.openpty()
        os.fchown(slave, user.uid, user.gid) if os.geteuid() == 0 else None
        self.process: subprocess.Popen[Any] = user.popen(
            [sys.executable, "-c", LOGIN, *command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.shown = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, text: str) -> None:
        """Wait until `text` is on the screen."""
        deadline = time.monotonic() + 20
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} is not in {self.shown!r}"
            try:
                self.shown += os.read(self.master, 4096)
            except OSError:  # EIO: nobody holds the other side any more
                raise AssertionError(f"{text!r} is not in {self.shown!r}") from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_job_moves_to_another_terminal(as_user: User, terminals: list[Terminal]) -> None:
    first = Terminal(as_user, str(BIN / "python"), "-c", PROGRAM)
    terminals.append(first)
    first.shows("ready")
    first.type("20\n")
    first.shows("total 20")
    as_user.run([BIN / "torpor", "checkpoint", str(first.process.pid), "--then", "kill"], check=True)
    assert first.process.wait(10) == -signal.SIGKILL
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(second)
    second.type("22\n")
    second.shows("total 42")
    second.type("\x03")
    second.shows("interrupted at 42")
    assert second.process.wait(10) == 5


def test_a_job_that_is_run_has_the_terminal(as_user: User, terminals: list[Terminal]) -> None:
    terminal = Terminal(as_user, str(BIN / "torpor"), "run", "--", str(BIN / "python"), "-c", PROGRAM)
    terminals.append(terminal)
    terminal.shows("ready")
    terminal.type("42\n")
    terminal.shows("total 42")
    terminal.type("\x03")
    terminal.shows("interrupted at 42")
    assert terminal.process.wait(10) == 5

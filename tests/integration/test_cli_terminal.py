"""A job on a terminal: frozen on one, woken on another, with its keyboard and its Ctrl-C."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.users import BIN, User

# The pipe ends select even if the signal comes just before: read(2) would sleep, and the handler run when it returns.
PROGRAM = """
import os, select, signal, sys
interrupted, written_to = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(written_to)
try:
    total = 0
    print("ready", flush=True)
    while True:
        select.select([0, interrupted], [], [])
        total += int(sys.stdin.readline())
        print("total", total, flush=True)
except KeyboardInterrupt:
    print("interrupted at", total, flush=True)
    sys.exit(5)
"""
# Makes the terminal its session's own, as a login does, and becomes the command.
LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal with a command on it, in a session of its own."""

    def __init__(self, user: User, *command: str, size: tuple[int, int] = (24, 80)) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
        os.fchown(slave, user.uid, user.gid) if os.geteuid() == 0 else None
        self.process: subprocess.Popen[Any] = user.popen(
            [sys.executable, "-c", LOGIN, *command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.shown = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, text: str) -> None:
        """Wait until `text` is on the screen, and forget what comes before its end."""
        deadline = time.monotonic() + 100
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not in {self.shown!r}"
            try:
                self.shown += os.read(self.master, 4096)
            except OSError:  # EIO: nobody holds the other side any more
                raise AssertionError(f"{text!r} is not in {self.shown!r}") from None
        self.shown = self.shown.partition(text.encode())[2]

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.master >= 0:
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
    assert first.process.wait(100) == -signal.SIGKILL
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(second)
    second.type("22\n")
    second.shows("total 42")
    second.type("\x03")
    second.shows("interrupted at 42")
    assert second.process.wait(100) == 5


def test_a_large_paste_and_much_output_do_not_wait_for_each_other(as_user: User, terminals: list[Terminal]) -> None:
    program = """
import hashlib, os, sys, tty
print("ready", flush=True)
sys.stdin.readline()
tty.setraw(0)
size, heard = 1 << 20, hashlib.sha1()
print("listening", flush=True)
while size > 0:
    os.write(1, b"." * 3000)
    piece = os.read(0, min(size, 4096))
    heard.update(piece)
    size -= len(piece)
    os.write(1, b"." * 3000)
print("heard", heard.hexdigest(), flush=True)
"""
    first = Terminal(as_user, str(BIN / "python"), "-c", program)
    terminals.append(first)
    first.shows("ready")
    as_user.run([BIN / "torpor", "checkpoint", str(first.process.pid), "--then", "kill"], check=True)
    assert first.process.wait(100) == -signal.SIGKILL
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(second)
    second.type("\n")
    second.shows("listening")
    paste = bytes(range(33, 127)) * (1 << 14)
    paste, left = paste[: 1 << 20], memoryview(paste[: 1 << 20])
    os.set_blocking(second.master, False)
    deadline = time.monotonic() + 60
    while left:
        assert time.monotonic() < deadline, f"{len(left)} bytes of the paste are not taken"
        readable, writable, _ = select.select([second.master], [second.master], [], 1)
        if writable:
            left = left[os.write(second.master, left[:4096]) :]
        elif readable:  # only where nothing more can be typed: who pastes does not look before
            second.shown = (second.shown + os.read(second.master, 65536))[-4096:]
    os.set_blocking(second.master, True)
    second.shows(f"heard {hashlib.sha1(paste).hexdigest()}")
    assert second.process.wait(100) == 0


def test_a_job_that_is_run_has_the_terminal(as_user: User, terminals: list[Terminal]) -> None:
    terminal = Terminal(as_user, str(BIN / "torpor"), "run", "--", str(BIN / "python"), "-c", PROGRAM)
    terminals.append(terminal)
    terminal.shows("ready")
    terminal.type("42\n")
    terminal.shows("total 42")
    terminal.type("\x03")
    terminal.shows("interrupted at 42")
    assert terminal.process.wait(100) == 5


WITH_TTY = """
import os, sys
tty = os.open("/dev/tty", os.O_RDWR)
os.write(1, b"ready\\n")
while line := sys.stdin.readline():
    try:
        os.write(tty, b"tty says " + line.encode())
    except OSError as error:
        print("no tty:", error.strerror, repr(os.read(tty, 10)), flush=True)
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        print("has one", os.tcgetpgrp(tty) == os.getpgrp(), flush=True)
    except OSError as error:
        print("has none:", error.strerror, flush=True)
"""


def frozen(user: User, terminal: Terminal) -> None:
    """End what is below a terminal's first process with a checkpoint."""
    user.run([BIN / "torpor", "checkpoint", str(terminal.process.pid), "--then", "kill"], check=True)
    assert terminal.process.wait(100) == -signal.SIGKILL


def test_a_shell_has_its_jobs_on_another_terminal(as_user: User, terminals: list[Terminal]) -> None:
    first = Terminal(as_user, "/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
    terminals.append(first)
    first.type("PS1='[''ok] '\n")
    first.shows("[ok] ")
    first.type("cat; echo got $?\n")
    first.shows("$?\r\n")
    first.type("line\n")
    first.shows("line\r\nline\r\n")
    frozen(as_user, first)
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest", size=(37, 91))
    terminals.append(second)
    second.type("more\n")
    second.shows("more\r\nmore\r\n")
    second.type("\x1a")
    second.shows("Stopped")
    second.shows("[ok] ")
    second.type("fg\n")
    second.shows("fg\r\ncat\r\n")
    second.type("again\n")
    second.shows("again\r\nagain\r\n")
    second.type("\x03")
    second.shows("^C\r\n[ok] ")
    second.type("stty size; echo to the terminal > /dev/tty\n")
    second.shows("37 91\r\n")
    second.shows("to the terminal\r\n[ok] ")
    second.type("exit 7\n")
    assert second.process.wait(100) == 7


def job_of_an_outer_shell(as_user: User, terminals: list[Terminal], command: str) -> Terminal:
    """Start a command that says "ready" in a shell; end it by a checkpoint, and let the shell wake it."""
    outer = Terminal(as_user, "/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
    terminals.append(outer)
    outer.type(f"PS1='[''ok] '; torpor={BIN / 'torpor'}\n")
    outer.shows("[ok] ")
    outer.type(f"{command}\n")
    outer.shows("ready\r\n")
    job = os.tcgetpgrp(outer.master)
    as_user.run([BIN / "torpor", "checkpoint", str(job), "--then", "kill"], check=True)
    outer.shows("Killed")
    outer.type("$torpor restore latest\n")
    outer.shows("restore latest\r\n")
    return outer


def test_a_job_of_an_outer_shell_is_stopped_and_continued(as_user: User, terminals: list[Terminal]) -> None:
    (as_user.tmp / "job.py").write_text(PROGRAM)
    outer = job_of_an_outer_shell(as_user, terminals, f"{BIN / 'python'} {as_user.tmp / 'job.py'}")
    outer.type("20\n")
    outer.shows("total 20\r\n")
    outer.type("\x1a")
    outer.shows("Stopped")
    outer.type("echo $((6 * 7))\n")
    outer.shows("42\r\n")
    outer.type("fg\n")
    outer.shows("$torpor restore latest\r\n")
    outer.type("22\n")
    outer.shows("total 42\r\n")
    outer.type("\x03")
    outer.shows("interrupted at 42")
    outer.shows("[ok] ")
    outer.type("echo status $?\n")
    outer.shows("status 5")
    outer.type("exit\n")
    assert outer.process.wait(100) == 0


def test_a_job_that_stops_itself_on_its_new_terminal(as_user: User, terminals: list[Terminal]) -> None:
    """The outer shell sees it, has its terminal back, and continues it."""
    command = 'sh -c \'echo "re"ady; read x; kill -STOP $$; echo "go"es on; read x; exit 4\''
    outer = job_of_an_outer_shell(as_user, terminals, command)
    outer.type("\n")
    outer.shows("Stopped")
    outer.type("echo $((6 * 7))\n")
    outer.shows("42\r\n")
    outer.type("fg\n")
    outer.shows("goes on\r\n")
    outer.type("\n")
    outer.shows("[ok] ")
    outer.type("echo status $?\n")
    outer.shows("status 4")
    outer.type("exit\n")
    assert outer.process.wait(100) == 0


def test_dev_tty_is_the_new_terminal_and_a_hangup_ends_the_job(as_user: User, terminals: list[Terminal]) -> None:
    first = Terminal(as_user, str(BIN / "python"), "-c", WITH_TTY)
    terminals.append(first)
    first.shows("ready")
    frozen(as_user, first)
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(second)
    second.type("hello\n")
    second.shows("tty says hello")
    second.shows("has one True")
    second.hang_up()
    assert second.process.wait(100) == -signal.SIGHUP


def test_without_a_terminal_the_job_has_none(as_user: User, terminals: list[Terminal]) -> None:
    fifo, output = as_user.tmp / "fifo", as_user.tmp / "output"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    (as_user.tmp / "job.py").write_text(WITH_TTY)
    redirected = f"exec {BIN / 'python'} {as_user.tmp / 'job.py'} 0<>{fifo} >{output} 2>&1"
    first = Terminal(as_user, "/bin/sh", "-c", redirected)
    terminals.append(first)
    wait_for(output, "ready\n")
    frozen(as_user, first)
    job = int(as_user.run([BIN / "torpor", "restore", "latest", "--detach"], check=True).stdout)
    fifo.write_text("hello\n")
    wait_for(output, "ready\nno tty: Input/output error b''\nhas none: No such device or address\n")
    ended = os.pidfd_open(job)
    os.kill(job, signal.SIGTERM)
    assert select.select([ended], [], [], 100)[0]
    os.close(ended)


def wait_for(output: Path, text: str) -> None:
    deadline = time.monotonic() + 100
    while not output.exists() or output.read_text() != text:
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.01)


def test_a_job_moves_on_from_the_terminal_it_was_woken_on(as_user: User, terminals: list[Terminal]) -> None:
    first = Terminal(as_user, str(BIN / "python"), "-c", PROGRAM)
    terminals.append(first)
    first.shows("ready")
    frozen(as_user, first)
    second = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(second)
    second.type("20\n")
    second.shows("total 20")
    command = second.process.pid
    (job,) = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    as_user.run([BIN / "torpor", "checkpoint", job, "--then", "kill"], check=True)
    assert second.process.wait(100) == -signal.SIGKILL
    third = Terminal(as_user, str(BIN / "torpor"), "restore", "latest")
    terminals.append(third)
    third.type("22\n")
    third.shows("total 42")
    third.type("\x03")
    third.shows("interrupted at 42")
    assert third.process.wait(100) == 5

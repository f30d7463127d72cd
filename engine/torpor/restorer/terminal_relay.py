"""Give a job that is woken on a terminal its own pseudo terminal, as script(1) and ssh(1) do.

A terminal can control one session only, and the restorer's terminal controls the shell's session. So a job that had a
controlling terminal gets a pseudo terminal for its own session, with its former settings and foreground group. This
process copies bytes between that and its own terminal, which it puts into raw mode. The inner terminal interprets
Ctrl-C, Ctrl-Z and the like, so that job control works in the job as before. When the outer terminal hangs up, the inner
one does too.

When the job's first process is stopped, this process stops too, for its own shell, and when the shell continues it, it
continues the job.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import threading
import time
import tty
from contextlib import suppress

from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Pty
from torpor.objects.fds import ptys
from torpor.remote import kernel_signals
from torpor.restorer.job import Job
from torpor.util.workers import RAISE_LIMIT, Thread

_PIECE = 1 << 16
_BACKGROUND_SECONDS = 0.2
"""Seconds between two checks, in the background, whether this process is in the foreground again."""
_DRAIN_SECONDS = 1.0
"""Seconds that remaining processes of an ended job may go on writing."""


class _Way:
    """Copies bytes from one terminal to another."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self.target = target
        self.waiting = bytearray()
        """Bytes that the target has not accepted yet."""

    @property
    def has_room(self) -> bool:
        """Whether to read more; if not, the writer must wait."""
        return len(self.waiting) < _PIECE

    def take(self) -> bytes | None:
        """Read what is available and pass it on; return it: empty at the end, None if another process has read it."""
        try:
            got = os.read(self._source, _PIECE)
        except BlockingIOError:
            return None
        except OSError:  # EIO: no process has the other side open any more
            return b""
        self.waiting += got
        self.give()
        return got

    def give(self) -> bool:
        """Write what the target accepts at once; return whether it accepted any bytes."""
        try:
            written = os.write(self.target, self.waiting[:_PIECE])
        except BlockingIOError:
            return False
        except OSError:  # the target is gone, so the bytes are lost, as on any terminal
            self.waiting.clear()
            return False
        del self.waiting[:written]
        return written > 0


class Relay:
    """Connects the terminal `outer` with the pseudo terminal that the job gets instead.

    Args:
        outer: a descriptor of a terminal, open for reading and writing.
    """

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self._screen = -1
        """A non-blocking descriptor of the outer terminal."""
        self._modes = termios.tcgetattr(outer)
        self._master = -1
        self._slave = -1
        self._end = os.pipe()
        self._stops = os.pipe()
        """By which the carrier learns that the job was stopped, and by which signal."""
        self._resumed = threading.Event()
        self._raw = False
        self._carrier = Thread(self._carry)
        self._ready = threading.Event()
        """Set when copying can begin. The thread is started earlier, so that no job is woken without it."""
        self._job: Job

    def open(self, pty: Pty) -> int:
        """Make the inner terminal.

        Args:
            pty: the job's former terminal.

        Returns:
            A descriptor of the slave side, which this object owns.

        Raises:
            RestoreFailed: the thread that copies bytes cannot be started.
        """
        if not self._carrier.start():
            why = "the thread that copies its terminal's bytes cannot be started"
            raise RestoreFailed(f"it was not woken: {why}", advice=RAISE_LIMIT)
        self._master, self._slave = os.openpty()
        if pty.termios:
            ptys.give_settings(self._slave, pty)
        else:
            termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        return self._slave

    @property
    def opened(self) -> bool:
        """Whether `open` was called, so that the job has the inner terminal."""
        return self._master >= 0

    def foreground(self, job: Job) -> int:
        """Do what `Job.foreground` does, and copy the bytes of the job's terminal meanwhile."""
        self._job = job
        os.close(self._slave)
        # A new open file description, since O_NONBLOCK must not change the shell's.
        self._screen = os.open(f"/proc/self/fd/{self._outer}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._master, False)
        self._enter()
        self._ready.set()
        try:
            return job.foreground(self._on_signal, self._on_stop)
        finally:
            os.write(self._end[1], b"!")
            self._carrier.join()
            self._leave()
            for fd in (self._master, self._screen, *self._end, *self._stops):
                if fd >= 0:
                    os.close(fd)

    def _on_signal(self, number: int) -> bool:
        """Handle a signal to this process; return whether it is for the terminal and not for the job."""
        if number == signal.SIGWINCH:
            self._resize()
        return number in (signal.SIGWINCH, signal.SIGCONT)

    def _on_stop(self, number: int) -> None:
        """Let the carrier, which has the terminal, stop this process."""
        self._resumed.clear()
        os.write(self._stops[1], bytes([number]))
        self._resumed.wait()

    def _resize(self) -> None:
        with suppress(OSError):  # the outer terminal is gone
            size = fcntl.ioctl(self._outer, termios.TIOCGWINSZ, bytes(ptys.WINDOW_SIZE))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _enter(self) -> None:
        """Set raw mode and the current size, and let the job redraw its screen."""
        if self._in_foreground():
            tty.setraw(self._outer, termios.TCSADRAIN)
            self._raw = True
        self._resize()
        self._signal(signal.SIGWINCH)

    def _leave(self) -> None:
        if self._raw:
            with suppress(termios.error):
                termios.tcsetattr(self._outer, termios.TCSADRAIN, self._modes)
        self._raw = False

    def _in_foreground(self) -> bool:
        with suppress(OSError):
            return os.tcgetpgrp(self._outer) == os.getpgrp()
        return False

    def _signal(self, number: int) -> None:
        """Send a signal to the foreground process group of the inner terminal."""
        with suppress(OSError):
            os.killpg(os.tcgetpgrp(self._master), number)

    def _carry(self) -> None:
        """Copy bytes in both directions until the job has ended and all its output is written.

        No direction blocks the other: the output of a program that does not read its input must still appear.
        """
        kernel_signals.block(kernel_signals.EVERY)  # also those that libc reserves
        self._ready.wait()
        ending = self._end[0]
        inward, outward = _Way(self._screen, self._master), _Way(self._master, self._screen)
        sources = {self._master: outward, self._screen: inward}
        deadline = float("inf")
        while (ending >= 0 or self._master in sources or outward.waiting) and time.monotonic() < deadline:
            if self._screen in sources and not self._raw and self._in_foreground():
                self._enter()
            readers = [fd for fd, way in sources.items() if way.has_room and (fd != self._screen or self._raw)]
            writers = [way.target for way in (inward, outward) if way.waiting]
            endings = [ending, self._stops[0]] if ending >= 0 else []
            patience = None if self._raw else _BACKGROUND_SECONDS
            timeout = patience if endings else _DRAIN_SECONDS if outward.waiting else 0.0
            readable, writable, _ = select.select([*readers, *endings], writers, [], timeout)
            if not (readable or writable or endings):
                return
            if self._stops[0] in readable:
                self._suspend(os.read(self._stops[0], 1)[0])
                continue
            if ending in readable:
                ending = -1
                sources.pop(self._screen, None)
                inward.waiting.clear()
                deadline = time.monotonic() + _DRAIN_SECONDS
            for way in (inward, outward):
                if way.target in writable and way.give() and way is outward and ending < 0:
                    deadline = time.monotonic() + _DRAIN_SECONDS
            if self._master in readable and outward.take() == b"":
                sources.pop(self._master)
            if self._screen in readable and self._screen in sources and inward.take() == b"":
                sources.clear()
                inward.waiting.clear()
                self._hang_up()

    def _hang_up(self) -> None:
        """Close the master, since the outer terminal is gone: that hangs up the inner one."""
        os.close(self._master)
        self._master = -1

    def _suspend(self, number: int) -> None:
        """Stop this process as the job is stopped. When it is continued, continue the job.

        A session leader has no shell that would continue it: then Ctrl-Z does not stop the job for long.
        """
        leads = os.getsid(0) == os.getpid()
        self._leave()
        if not leads:
            self._job.stop_too(number)
        if self._in_foreground():
            self._enter()
        if not leads or number == signal.SIGTSTP:
            self._signal(signal.SIGCONT)
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(self._job.tree_pid), signal.SIGCONT)
        self._resumed.set()

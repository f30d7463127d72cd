"""A terminal of its own for a job that is woken on one, as script(1) and ssh(1) give it.

The kernel lets a terminal control one session only, and that of the restorer's terminal is the shell's. A job that had
a controlling terminal therefore gets a pseudo terminal in the session where it was, with the settings and the
foreground group that it had; this process carries the bytes between that and its own terminal, which it sets to raw
mode for the time. Ctrl-C, Ctrl-Z and the like are the inner terminal's to understand, so that job control works in the
job as it did. When the outer terminal hangs up, so does the inner one.

Where the job's shell was outside of it, nobody in it would take note when Ctrl-Z stops it: then this process stops
too, for its own shell, and with it the job is continued.
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

from torpor import procfs
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Pty
from torpor.objects.fds import ptys
from torpor.restorer.job import Job
from torpor.util.workers import RAISE_LIMIT, Thread

_PIECE = 1 << 16
_BACKGROUND_SECONDS = 0.2
"""How often one in the background looks whether it was brought to the foreground."""
_STOP_SECONDS, _STOP_STEP = 1.0, 0.01
"""How long after Ctrl-Z a job may take to stop, and how often one looks."""
_DRAIN_SECONDS = 1.0
"""How long what is left of a job may go on writing."""
_CHARACTERS = 6  # of tcgetattr()


class _Way:
    """Bytes on their way from one terminal to another."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self.target = target
        self.waiting = bytearray()
        """What the target has not taken yet."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read: else who writes is to wait."""
        return len(self.waiting) < _PIECE

    def take(self) -> bytes:
        """Read what is there; empty at the end."""
        try:
            got = os.read(self._source, _PIECE)
        except OSError:  # EIO: nobody has the other side any more
            return b""
        self.waiting += got
        self.give()
        return got

    def give(self) -> bool:
        """Write what the target takes at once; whether it took something."""
        try:
            written = os.write(self.target, self.waiting[:_PIECE])
        except BlockingIOError:
            return False
        except OSError:  # what cannot be shown or is heard by nobody is lost, as on any terminal
            self.waiting.clear()
            return False
        del self.waiting[:written]
        return written > 0


class Relay:
    """The terminal `outer`, and the one inside that the job gets in its place.

    Args:
        outer: a descriptor of a terminal, open for reading and writing.
    """

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self._screen = -1
        """The same terminal, to be read and written without waiting."""
        self._modes = termios.tcgetattr(outer)
        self._master = -1
        self._slave = -1
        self._end = os.pipe()
        self._raw = False
        self._stop_deadline = 0.0
        self._carrier = Thread(self._carry)
        self._ready = threading.Event()
        """Told when there are bytes to carry: the thread waits for that, so that a job is not woken without it."""
        self._job: Job

    def open(self, pty: Pty) -> int:
        """Make the terminal inside.

        Args:
            pty: what the job's terminal was.

        Returns:
            A descriptor of its slave side. It stays this object's.

        Raises:
            RestoreFailed: there can be no thread that carries its bytes.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's to hear
        running = self._carrier.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not running:
            why = "no thread can be started that carries the bytes of its terminal"
            raise RestoreFailed(f"it was not woken: {why}", advice=RAISE_LIMIT)
        self._master, self._slave = os.openpty()
        if pty.termios:
            ptys.give_settings(self._slave, pty)
        else:
            termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        return self._slave

    @property
    def opened(self) -> bool:
        """Whether the job has a terminal of this object's."""
        return self._master >= 0

    def foreground(self, job: Job) -> int:
        """Stand for the job until it ends, as `Job.foreground`, and be its terminal."""
        self._job = job
        os.close(self._slave)
        # A description of our own: that of the shell is to stay as it is.
        self._screen = os.open(f"/proc/self/fd/{self._outer}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._master, False)
        self._enter()
        self._ready.set()
        try:
            return job.foreground(self._hear)
        finally:
            os.write(self._end[1], b"!")
            self._carrier.join()
            self._leave()
            for fd in (self._master, self._screen, *self._end):
                if fd >= 0:
                    os.close(fd)

    def _hear(self, number: int) -> bool:
        """Whether a signal to this process is for the terminal and not for the job."""
        if number == signal.SIGWINCH:
            self._resize()
        return number in (signal.SIGWINCH, signal.SIGCONT)

    def _resize(self) -> None:
        with suppress(OSError):  # the outer terminal is gone
            size = fcntl.ioctl(self._outer, termios.TIOCGWINSZ, bytes(ptys.WINDOW_SIZE))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _enter(self) -> None:
        """Raw mode, the size as it is now, and a screen that is drawn again."""
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
        """Send a signal to the foreground group of the terminal inside."""
        with suppress(OSError):
            os.killpg(os.tcgetpgrp(self._master), number)

    def _carry(self) -> None:
        """Carry bytes both ways until the job has ended and all that it wrote is shown.

        Neither way waits for the other: a program that writes and does not read must not keep its own output back.
        """
        self._ready.wait()
        ending = self._end[0]
        inward, outward = _Way(self._screen, self._master), _Way(self._master, self._screen)
        sources = {self._master: outward, self._screen: inward}
        deadline = float("inf")
        while (ending >= 0 or self._master in sources or outward.waiting) and time.monotonic() < deadline:
            if self._screen in sources and not self._raw and self._in_foreground():
                self._enter()
            self._watch()
            readers = [fd for fd, way in sources.items() if way.has_room and (fd != self._screen or self._raw)]
            writers = [way.target for way in (inward, outward) if way.waiting]
            told = [ending] if ending >= 0 else []
            timeout = self._patience() if told else _DRAIN_SECONDS if outward.waiting else 0.0
            readable, writable, _ = select.select([*readers, *told], writers, [], timeout)
            if not (readable or writable or told):
                return
            if ending in readable:
                ending = -1
                sources.pop(self._screen, None)
                inward.waiting.clear()
                deadline = time.monotonic() + _DRAIN_SECONDS
            for way in (inward, outward):
                if way.target in writable and way.give() and way is outward and ending < 0:
                    deadline = time.monotonic() + _DRAIN_SECONDS
            if self._master in readable and not outward.take():
                sources.pop(self._master)
            if self._screen in readable and self._screen in sources:
                if not (typed := inward.take()):
                    sources.clear()
                    inward.waiting.clear()
                    self._hang_up()
                elif self._suspends(typed):
                    self._stop_deadline = time.monotonic() + _STOP_SECONDS

    def _patience(self) -> float | None:
        if self._stop_deadline:
            return _STOP_STEP
        return None if self._raw else _BACKGROUND_SECONDS

    def _hang_up(self) -> None:
        """The outer terminal is gone: without its master, the one inside hangs up."""
        os.close(self._master)
        self._master = -1

    def _suspends(self, typed: bytes) -> bool:
        """Whether Ctrl-Z is among what was typed, and nobody in the job takes note when it stops."""
        with suppress(OSError, termios.error):
            character = termios.tcgetattr(self._master)[_CHARACTERS][termios.VSUSP]
            return character in typed and os.getsid(self._job.tree_pid) != self._job.tree_pid
        return False

    def _watch(self) -> None:
        """Stop with the job, if it does so soon after Ctrl-Z."""
        if not self._stop_deadline:
            return
        with suppress(FileNotFoundError, ProcessLookupError):
            if procfs.stat(self._job.tree_pid).state == "T":
                self._stop_deadline = 0.0
                self._suspend()
        if time.monotonic() > self._stop_deadline:
            self._stop_deadline = 0.0

    def _suspend(self) -> None:
        self._leave()
        if os.getsid(0) != os.getpid():  # else it has no shell that would continue it
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # by this thread: at once
        if self._in_foreground():
            self._enter()
        self._signal(signal.SIGCONT)

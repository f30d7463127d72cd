"""Terminals and other things whose far end is outside the tree: the restorer gives its own.

A program's standard input, output and error usually lead to whoever started it: a terminal, a pipe, a
socket. Where the program wakes, these are the restorer's: descriptor 0, 1 or 2 of the image becomes the
restorer's 0, 1 or 2, whatever kind of thing that is now. A regular file or /dev/null is no such thing: it
is opened again itself.

O_NONBLOCK is set or cleared on them as the program had it; whoever shares them with the program sees that, as before.

A terminal that was opened once more (/dev/tty, a shell's descriptor 255) follows the one in stdio. Pseudo terminals,
whose other side may be in the tree, are `torpor.objects.fds.ptys`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Pty, Tree
from torpor.objects.kind import (
    STDIO,
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Opening,
    Problem,
    Seen,
    borrowed,
)
from torpor.remote.sys import try_syscall

# include/uapi/asm-generic/ioctls.h, where Python's termios has no name for it
TIOCGDEV = 0x80045432


@dataclass
class TerminalState:
    """A descriptor of a terminal as it was."""

    device: int = 0
    """The number of the terminal itself, also when it was opened as /dev/tty; 0: it is none, or has hung up."""
    image: Pty = field(default_factory=Pty)
    """What is to be kept of a pseudo terminal: see `torpor.objects.fds.ptys`."""
    node: tuple[int, int] = (0, 0)
    """Device and inode of its name in /dev/pts, of a master; of a slave side, of what was opened."""
    problems: list[Problem] = field(default_factory=list)
    """Why it cannot be kept at this moment."""
    other: OpenFile[TerminalState] | None = None
    """Of a slave side, the master; of a master, one of its slave sides. None: the tree has none."""


class Terminal(Kind[TerminalState]):
    """A terminal that is no pseudo terminal, and how everything outside is given again."""

    field = "outside"

    def matches(self, seen: Seen) -> bool:
        """Told by the name; `grab` asks the driver."""
        name = seen.link.removeprefix("/dev/")
        return stat.S_ISCHR(seen.stat.st_mode) and name.startswith(("tty", "console", "hvc"))

    def grab(self, held: OpenFile[TerminalState], pidfd: int, *, content: bool) -> TerminalState:
        """Ask which terminal it really is."""
        with borrowed(pidfd, held.holders[0].fd) as copy:
            return TerminalState(asked_number(copy, TIOCGDEV) or 0)

    def outside(self, held: OpenFile[TerminalState], tree: GrabbedDescriptors) -> str:
        """Always: a person or a program is behind it."""
        return f"terminal {held.link}" if held.state.device else ""

    def stands_for(self, held: OpenFile[TerminalState], tree: GrabbedDescriptors) -> list[int]:
        """The same numbers as the same terminal in stdio."""
        if held.stdio:
            return held.stdio
        same = (other.stdio for other in tree.of(Terminal) if other.state.device == held.state.device)
        return sorted(set(chain.from_iterable(same))) or super().stands_for(held, tree)

    def judge(self, held: OpenFile[TerminalState], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """It is one."""
        if not held.state.device:
            yield Problem("it is a device whose state is unknown")

    def describe(
        self, held: OpenFile[TerminalState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Never: what leads outside is described by its number."""
        raise AssertionError(f"{held.link} was to be described by its number")

    def check(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The image names one of three numbers, and the restorer gave it."""
        for number in sorted({description.outside.stdio for description in mine.values()}):
            if number > STDIO:
                yield Reason("the image", f"it names {number} as a standard descriptor")
                continue
            try:
                os.fstat(stdio[number])
            except OSError:
                yield Reason(f"descriptor {number}", "the program has it, and here it is closed", "open it")

    def make(self, description: Description, opening: Opening) -> int:
        """A copy of what the restorer gave."""
        return os.dup(opening.stdio[description.outside.stdio])


def asked_number(fd: int, request: int) -> int | None:
    """An int that ioctl() writes; None when the request fails."""
    value = bytearray(4)
    if try_syscall(NR.ioctl, fd, request, value) < 0:
        return None
    return int.from_bytes(value, "little")

"""Terminals and other things whose other end is outside of the tree: the restorer's own descriptors replace them.

A program's standard input, output and error usually lead outside: to a terminal, a pipe or a socket of the process that
started it. After a wake these are the restorer's: descriptor 0, 1 or 2 of the image becomes the restorer's 0, 1 or 2,
of any kind. A regular file or /dev/null is not replaced: it is opened again itself.

O_NONBLOCK is set or cleared on them as the program had it; other processes that share them see that, as before.

A terminal that was opened again (/dev/tty, a shell's descriptor 255) follows the one in stdio. Pseudo terminals, whose
other side may be in the tree, are in `torpor.objects.fds.ptys`.
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
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import Opening
from torpor.remote.sys import try_syscall

# include/uapi/asm-generic/ioctls.h, where Python's termios has no name for it
TIOCGDEV = 0x80045432


@dataclass
class TerminalState:
    """A descriptor of a terminal as it was."""

    device: int = 0
    """The number of the terminal, even if it was opened as /dev/tty; 0 if it is not a terminal, or has hung up."""
    image: Pty = field(default_factory=Pty)
    """What is kept of a pseudo terminal: see `torpor.objects.fds.ptys`."""
    node: tuple[int, int] = (0, 0)
    """Device and inode: for a master of its name in /dev/pts, for a slave side of what was opened."""
    unsupported: list[Unsupported] = field(default_factory=list)
    """Why it cannot be kept at this moment."""
    other: OpenFile[TerminalState] | None = None
    """For a slave side the master, for a master one of its slave sides; None if the tree has none."""


class Terminal(Kind[TerminalState]):
    """A terminal other than a pseudo terminal; and the restore of everything that leads outside."""

    field = "outside"

    def matches(self, seen: Seen) -> bool:
        """By its name; `grab` queries the driver."""
        name = seen.link.removeprefix("/dev/")
        return stat.S_ISCHR(seen.stat.st_mode) and name.startswith(("tty", "console", "hvc"))

    def grab(self, open_file: OpenFile[TerminalState], pidfd: int, *, content: bool) -> TerminalState:
        """Find which terminal it really is."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return TerminalState(asked_number(copy, TIOCGDEV) or 0)

    def outside(self, open_file: OpenFile[TerminalState], tree: GrabbedDescriptors) -> str:
        """Always: a person or a program is behind it."""
        return f"terminal {open_file.link}" if open_file.state.device else ""

    def stands_for(self, open_file: OpenFile[TerminalState], tree: GrabbedDescriptors) -> list[int]:
        """The same numbers as the same terminal in stdio."""
        if open_file.stdio:
            return open_file.stdio
        same = (other.stdio for other in tree.of(Terminal) if other.state.device == open_file.state.device)
        return sorted(set(chain.from_iterable(same))) or super().stands_for(open_file, tree)

    def unsupported(self, open_file: OpenFile[TerminalState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be a terminal."""
        if not open_file.state.device:
            yield Unsupported("it is a device whose state is unknown")

    def describe(
        self, open_file: OpenFile[TerminalState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Never called: what leads outside is described by its number."""
        raise AssertionError(f"{open_file.link} should be described by its number")

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The image must name one of three numbers, and the restorer must have it open."""
        for number in sorted({description.outside.stdio for description in mine.values()}):
            if number > STDIO:
                yield Reason("the image", f"it names {number} as a standard descriptor")
                continue
            try:
                os.fstat(stdio[number])
            except OSError:
                yield Reason(f"descriptor {number}", "the program has it, and here it is closed", "open it")

    def make(self, description: Description, opening: Opening) -> int:
        """Copy the restorer's descriptor."""
        return os.dup(opening.stdio[description.outside.stdio])


def asked_number(fd: int, request: int) -> int | None:
    """An int that ioctl() writes; None if the request fails."""
    value = bytearray(4)
    if try_syscall(NR.ioctl, fd, request, value) < 0:
        return None
    return int.from_bytes(value, "little")

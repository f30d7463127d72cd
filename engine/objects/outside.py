"""Terminals and other things whose far end is outside the tree: the restorer gives its own.

A program's standard input, output and error usually lead to whoever started it: a terminal, a pipe, a
socket. Where the program wakes, these are the restorer's: descriptor 0, 1 or 2 of the image becomes the
restorer's 0, 1 or 2, whatever kind of thing that is now. A regular file or /dev/null is no such thing: it
is opened again itself.

O_NONBLOCK is set or cleared on them as the program had it; whoever shares them with the program sees that, as before.

A terminal that was opened once more (/dev/tty, a shell's descriptor 255) follows the one in stdio.
Terminals that are not in stdio at all, and the master sides of pseudo terminals, are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import chain

from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.description import (
    STDIO,
    Describing,
    GrabbedDescriptors,
    Held,
    Kind,
    Opening,
    Problem,
    Seen,
    borrowed,
)

CONTROLLING_TERMINAL = os.makedev(5, 0)
PTY_MULTIPLEXER = os.makedev(5, 2)


class Terminal(Kind[bool]):
    """A terminal: the state is whether it really is one."""

    field = "outside"

    def matches(self, seen: Seen) -> bool:
        """Told by the name; `grab` asks the driver."""
        name = seen.link.removeprefix("/dev/")
        return (
            stat.S_ISCHR(seen.stat.st_mode)
            and name.startswith(("tty", "pts/", "console", "hvc"))
            and seen.stat.st_rdev != PTY_MULTIPLEXER
        )

    def grab(self, held: Held[bool], pidfd: int, *, content: bool) -> bool:
        """Ask whether it is a terminal."""
        with borrowed(pidfd, held.holders[0].fd) as copy:
            return os.isatty(copy)

    def outside(self, held: Held[bool], tree: GrabbedDescriptors) -> str:
        """Always: a person or a program is behind it."""
        return f"terminal {held.link}" if held.state else ""

    def stands_for(self, held: Held[bool], tree: GrabbedDescriptors) -> list[int]:
        """The same numbers as the same terminal in stdio."""
        if held.stdio:
            return held.stdio
        same = (
            other.stdio
            for other in tree.of(Terminal)
            if held.stat.st_rdev in (other.stat.st_rdev, CONTROLLING_TERMINAL)
        )
        return sorted(set(chain.from_iterable(same)))

    def judge(self, held: Held[bool], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """It is one."""
        if not held.state:
            yield Problem("it is a device whose state is unknown")

    def describe(self, held: Held[bool], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
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

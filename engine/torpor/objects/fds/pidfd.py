"""pidfd: a descriptor of a process (pidfd_open(2)).

Kept: which process of the tree it refers to, also one that has ended and was not reaped, and the flags. A process that
has it opens it again when the tree is built, since only then there is a process to open
(`torpor.objects.fds.made_in_process`). If its process was reaped, it comes back as the pidfd of a stand-in that has
ended.

Refused: processes outside of the tree, threads (PIDFD_THREAD).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.fds import mailboxes
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
)
from torpor.objects.opening import KEPT_BY_FCNTL, KEPT_BY_LINK, O_LARGEFILE, Opening
from torpor.remote.batch import Call

NOBODY = 0
"""In an image: the process has been reaped."""
CLOSE = "close it before the checkpoint"
F_SETFL = 4


class Pidfd(Kind[None]):
    """A process."""

    field = "pidfd"
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == "anon_inode:[pidfd]"

    def grab(self, open_file: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing to grab: fdinfo has the PID."""

    def unsupported(self, open_file: OpenFile[None], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """The process must be in the tree, or have been reaped."""
        pid = int(open_file.fields["Pid"])
        if pid != -1 and pid not in tree.pids and not (_is_child(pid, tree) and not tree.content):
            yield Unsupported(f"it leads to process {pid}, which is not in the tree", CLOSE)

    def describe(
        self, open_file: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write the PID in the tree's PID namespace."""
        pid = int(open_file.fields["Pid"])
        out.pidfd.pid = NOBODY if pid == -1 else image.tree.processes[tree.pids.index(pid)].pid

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The process must be in the image."""
        pids = {NOBODY, *(process.pid for process in image.processes)}
        for description in mine.values():
            if description.pidfd.pid not in pids:
                yield Reason("the image", f"a descriptor leads to process {description.pidfd.pid}, which is not in it")

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make a mailbox if several have it. Processes open it: see `torpor.objects.fds.made_in_process`."""
        mailboxes.make(mine, opening)


def opening(description: Description, got: int, spare: int, nobody: int) -> Iterator[Call]:
    """The calls by which a process opens a pidfd.

    Args:
        description: of the image.
        got: the lowest free number, which it gets.
        spare: the next free number.
        nobody: the PID of a process that will have ended and been reaped.
    """
    pid = description.pidfd.pid if description.pidfd.pid != NOBODY else nobody
    words, flags = f"opening process {pid}", description.flags & (KEPT_BY_LINK | KEPT_BY_FCNTL)
    yield Call(NR.pidfd_open, (pid, flags & os.O_NONBLOCK), got, words)
    if description.flags & O_LARGEFILE:  # it was opened by open(), which also opens a pidfd's link (since 6.9)
        path = b"/proc/self/fd/%d\0" % got
        yield Call(NR.open, (path, flags | os.O_CLOEXEC, 0), spare, f"{words} once more")
        yield Call(NR.dup3, (spare, got, os.O_CLOEXEC), got, words)
        yield Call(NR.close, (spare,), 0, words)
    elif flags & KEPT_BY_FCNTL & ~os.O_NONBLOCK:
        yield Call(NR.fcntl, (got, F_SETFL, flags), 0, f"{words}: setting its flags")


def _is_child(pid: int, tree: GrabbedDescriptors) -> bool:
    """Whether it is a child of the tree that has ended, so that a survey does not see it."""
    try:
        return procfs.stat(pid).ppid in tree.pids
    except (FileNotFoundError, ProcessLookupError):
        return True  # it was just reaped: the state after the freeze counts

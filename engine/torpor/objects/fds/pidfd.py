"""pidfd: a process, held by a descriptor (pidfd_open(2)).

Kept: which process of the tree it leads to, one that has ended and was not waited for included, and the flags. A
process that has it opens it anew when the tree is built, for only then is there a process to open
(`torpor.objects.fds.made_in_process`). One that leads to nobody any more, whose process has been waited for, leads to a
stand-in, which ends.

Refused: processes outside the tree, threads (PIDFD_THREAD).
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
    KEPT_BY_FCNTL,
    KEPT_BY_LINK,
    O_LARGEFILE,
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Opening,
    Problem,
    Seen,
)
from torpor.remote.batch import Call

NOBODY = 0
"""In an image: the process has been waited for."""
CLOSE = "close it before the checkpoint"
F_SETFL = 4


class Pidfd(Kind[None]):
    """A process."""

    field = "pidfd"
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """Told by the link."""
        return seen.link == "anon_inode:[pidfd]"

    def grab(self, held: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing: fdinfo has the PID."""

    def judge(self, held: OpenFile[None], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """The process is in the tree, or nowhere."""
        pid = int(held.fields["Pid"])
        if pid != -1 and pid not in tree.pids and not (_is_child(pid, tree) and not tree.content):
            yield Problem(f"it leads to process {pid}, which is not in the tree", CLOSE)

    def describe(self, held: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """By the PID in the tree's PID namespace."""
        pid = int(held.fields["Pid"])
        out.pidfd.pid = NOBODY if pid == -1 else image.tree.processes[tree.pids.index(pid)].pid

    def check(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The process is in the image."""
        pids = {NOBODY, *(process.pid for process in image.processes)}
        for description in mine.values():
            if description.pidfd.pid not in pids:
                yield Reason("the image", f"a descriptor leads to process {description.pidfd.pid}, which is not in it")

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Not here: see `torpor.objects.fds.made_in_process`."""
        mailboxes.make(mine, opening)


def opening(description: Description, got: int, spare: int, nobody: int) -> Iterator[Call]:
    """The calls by which a process opens one.

    Args:
        description: of the image.
        got: the lowest number that is free there: it is to have this.
        spare: the next.
        nobody: the PID of a process that will have ended and been waited for.
    """
    pid = description.pidfd.pid if description.pidfd.pid != NOBODY else nobody
    words, flags = f"opening process {pid}", description.flags & (KEPT_BY_LINK | KEPT_BY_FCNTL)
    yield Call(NR.pidfd_open, (pid, flags & os.O_NONBLOCK), got, words)
    if description.flags & O_LARGEFILE:  # by open(), which is how its link can be opened, too (since 6.9)
        path = b"/proc/self/fd/%d\0" % got
        yield Call(NR.open, (path, flags | os.O_CLOEXEC, 0), spare, f"{words} once more")
        yield Call(NR.dup3, (spare, got, os.O_CLOEXEC), got, words)
        yield Call(NR.close, (spare,), 0, words)
    elif flags & KEPT_BY_FCNTL & ~os.O_NONBLOCK:
        yield Call(NR.fcntl, (got, F_SETFL, flags), 0, f"{words}: setting its flags")


def _is_child(pid: int, tree: GrabbedDescriptors) -> bool:
    """Whether it is a child of the tree that is no part of a survey, because it has ended."""
    try:
        return procfs.stat(pid).ppid in tree.pids
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has just been waited for: what is there after the freeze counts

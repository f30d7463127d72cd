"""pidfd: a process, held by a descriptor (pidfd_open(2)).

Kept: which process of the tree it leads to, one that has ended and was not waited for included. Each process that has
it opens it anew when the tree is built, for only then is there a process to open. Descriptors that shared one
description (by fork or dup) therefore have one each afterwards, which matters to nobody but kcmp(2). One that leads to
nobody any more, whose process has been waited for, leads to a stand-in, which ends.

Refused: processes outside the tree, threads (PIDFD_THREAD).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torpor import procfs
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import Describing, GrabbedDescriptors, Kind, OpenFile, Opening, Problem, Seen

NOBODY = 0
"""In an image: the process has been waited for."""
CLOSE = "close it before the checkpoint"


class Pidfd(Kind[None]):
    """A process."""

    field = "pidfd"

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


def _is_child(pid: int, tree: GrabbedDescriptors) -> bool:
    """Whether it is a child of the tree that is no part of a survey, because it has ended."""
    try:
        return procfs.stat(pid).ppid in tree.pids
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has just been waited for: what is there after the freeze counts

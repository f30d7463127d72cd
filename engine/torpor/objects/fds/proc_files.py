"""Files of /proc/PID about a process of the tree, which monitors and psutil keep open (proc(5)).

Kept: which process or thread it is about, also one that has ended and was not reaped, the flags, and the position. A
process that has it opens it again when the tree is built, in its own /proc: only then the other process exists
(`torpor.objects.fds.made_in_process`).

Refused: processes outside of the tree, those that were reaped, and the memory of another process (/proc/PID/mem), since
Yama may not let the process open that. All other files of /proc, which belong to no process, are opened by their names
(`torpor.objects.fds.files`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_FCNTL, Opening
from torpor.remote.batch import Call

CLOSE = "close it before the checkpoint"
_PATH = re.compile(rb"/proc/(\d+)(?:/task/(\d+))?((?:/[^/]+)*)")


class Shown(NamedTuple):
    """The process or thread that a file is about."""

    path: bytes
    """The path below the directory of the process or thread."""
    pid: int | None
    """The process's PID in our PID namespace; None if it is not in the tree."""
    ended: bool
    """Whether it is about a thread that has ended."""


class ProcFile(Kind[Shown | None]):
    """A file or a directory of a process."""

    field = "proc"
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """By its name: the kernel resolves /proc/self."""
        kind = stat.S_ISREG(seen.stat.st_mode) or stat.S_ISDIR(seen.stat.st_mode)
        return kind and _PATH.fullmatch(os.fsencode(seen.link)) is not None

    def grab(self, open_file: OpenFile[Shown | None], pidfd: int, *, content: bool) -> None:
        """Nothing to grab: the kernel generates its content when it is read."""

    def finish(self, mine: list[OpenFile[Shown | None]], tree: GrabbedDescriptors) -> None:
        """Find the processes that they are about."""
        for open_file in mine:
            if match := _PATH.fullmatch(os.fsencode(open_file.link)):
                pid = _find(int(match[1]), tree)
                ended = bool(pid and match[2] and not _has_thread(pid, int(match[2])))
                open_file.state = Shown(match[3], pid, ended)

    def unsupported(self, open_file: OpenFile[Shown | None], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its process must be in the tree."""
        if open_file.state is None or open_file.state.pid is None:
            yield Unsupported("it shows a process that is not in the tree, or has ended", CLOSE)
        elif open_file.state.ended:
            yield Unsupported("it shows a thread that has ended", CLOSE)
        elif open_file.state.path == b"/mem" and {holder.pid for holder in open_file.references} != {
            open_file.state.pid
        }:
            yield Unsupported("it shows the memory of another process", CLOSE)

    def describe(
        self, open_file: OpenFile[Shown | None], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its name, which has the PID in the tree's PID namespace, the one of its /proc."""
        out.proc.path = os.fsencode(open_file.link)
        out.proc.position = open_file.position

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The process must be in the image."""
        pids = {process.pid: {thread.tid for thread in process.threads} for process in image.processes}
        for description in mine.values():
            match = _PATH.fullmatch(description.proc.path)
            known = match and pids.get(int(match[1]))
            if not match or not known or (match[2] and int(match[2]) not in known) or b"/.." in match[3]:
                name = os.fsdecode(description.proc.path)
                yield Reason("the image", f"a descriptor leads to {name}, but the process is not in the image")

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make a mailbox if several have it. Processes open it: see `torpor.objects.fds.made_in_process`."""
        mailboxes.make(mine, opening)


def opening(description: Description, got: int) -> Iterator[Call]:
    """The calls by which a process opens the file at the lowest free number, and seeks to its position.

    The content may be shorter now: then the position is at its end.
    """
    flags = description.flags & (KEPT_AT_OPEN | KEPT_BY_FCNTL) | os.O_CLOEXEC
    name = os.fsdecode(description.proc.path)
    yield Call(NR.open, (description.proc.path + b"\0", flags, 0), got, f"opening {name}")
    if description.proc.position and not description.flags & os.O_PATH:
        yield Call(NR.lseek, (got, description.proc.position, os.SEEK_SET), None, f"seeking to the position in {name}")


def _find(number: int, tree: GrabbedDescriptors) -> int | None:
    """The process, by our PID, that has this number in the tree's PID namespace."""
    for pid in tree.pids:
        try:
            if int(procfs.status(procfs.read(f"/proc/{pid}/status"))[b"NSpid"].split()[-1]) == number:
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def _has_thread(pid: int, number: int) -> bool:
    try:
        for tid in procfs.threads(pid):
            status = procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))
            if int(status[b"NSpid"].split()[-1]) == number:
                return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    return False

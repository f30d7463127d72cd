"""eventfd: a counter (eventfd(2)).

Kept: the count, and whether it is a semaphore. fdinfo shows that since Linux 6.5 (``eventfd-semaphore``). On an older
kernel a process that has it tries it under the freeze: it reads the counter, looks whether something is left, and
writes back what is missing. A count below 2 is first raised to 2, since it would tell nothing. The process makes these
calls in one go, also if Torpor is killed meanwhile. Its waiting threads see nothing of it, since they are frozen; only
an edge-triggered epoll may report the counter once more, which epoll(7) allows.

Refused on such a kernel, since it cannot be tried: a counter that a process outside of the tree has open, which would
see the values in between, and one that is in a socket's queue.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
)
from torpor.objects.opening import Opening
from torpor.remote.batch import ArgumentOf, Ask, Batch
from torpor.remote.naming import describe_process
from torpor.remote.sys import closed_on_error, syscall

EFD_SEMAPHORE = 1
LARGEST = (1 << 64) - 2
"""ULLONG_MAX itself means overflow and cannot be written (fs/eventfd.c)."""
SHOWN = "eventfd-semaphore"
"""The field of fdinfo."""
_LINK = "anon_inode:[eventfd]"


@dataclass
class Tried:
    """What a trial has shown."""

    semaphore: bool | None = None
    """None if it was not tried."""
    outsider: int = 0
    """A process outside of the tree that has the counter open, so that it cannot be tried; 0: none."""


class Eventfd(Kind[Tried]):
    """A counter."""

    field = "eventfd"
    may_be_under_way = True

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == _LINK

    def grab(self, open_file: OpenFile[Tried], pidfd: int, *, content: bool) -> Tried:
        """Nothing to grab: fdinfo has the count."""
        return Tried()

    def ask(self, mine: Sequence[OpenFile[Tried]], tree: GrabbedDescriptors, ask: Mapping[int, Ask]) -> None:
        """Try which counters are semaphores, if the kernel does not show it."""
        unknown = [open_file for open_file in mine if SHOWN not in open_file.fields and open_file.under_way_to is None]
        outsiders = _outsiders(tree.pids) if unknown else {}
        batches: dict[int, tuple[Batch, dict[int, OpenFile[Tried]]]] = {}
        for open_file in unknown:
            open_file.state.outsider = outsiders.get(_id(open_file.info), 0)
            if not open_file.state.outsider:
                holder = open_file.references[0]
                batch, looks = batches.setdefault(holder.pid, (Batch(), {}))
                looks[_try(batch, holder.fd, int(open_file.fields["eventfd-count"], 16))] = open_file
        for pid, (batch, looks) in batches.items():
            replies = ask[pid](batch)
            for look, open_file in looks.items():
                open_file.state.semaphore = replies.result(look) == 1  # a call that has branched shows no result

    def unsupported(self, open_file: OpenFile[Tried], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """On a kernel that does not show whether it is a semaphore, it must have been tried."""
        if SHOWN in open_file.fields or not tree.content or open_file.state.semaphore is not None:
            return
        why = "before Linux 6.5 only a trial shows whether it is a semaphore, and"
        if open_file.under_way_to is not None:
            yield Unsupported(f"{why} no process has it yet: it is in a socket's queue", "try again", passing=True)
        else:
            other = describe_process(open_file.state.outsider)
            yield Unsupported(f"{why} {other}, outside of the tree, has it open too", "close it there")

    def describe(
        self, open_file: OpenFile[Tried], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its count, which fdinfo shows in hexadecimal."""
        out.eventfd.count = int(open_file.fields["eventfd-count"], 16)
        if SHOWN in open_file.fields:
            out.eventfd.semaphore = open_file.fields[SHOWN] != "0"
        else:
            out.eventfd.semaphore = bool(open_file.state.semaphore)

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The count must be valid."""
        for description in mine.values():
            if description.eventfd.count > LARGEST:
                yield Reason("the image", "it has an eventfd with an invalid count")

    def make(self, description: Description, opening: Opening) -> int:
        """Make it, and write the count: eventfd2() itself takes only 32 bits of it."""
        flags = os.O_CLOEXEC | (EFD_SEMAPHORE if description.eventfd.semaphore else 0)
        with closed_on_error(syscall(NR.eventfd2, 0, flags)) as fd:
            if description.eventfd.count:
                os.write(fd, struct.pack("=Q", description.eventfd.count))
            return fd


def _try(batch: Batch, fd: int, count: int) -> int:
    """Add a trial that leaves the count as it is. Returns the entry that asks whether something was left."""
    wanted = struct.pack("=iHH", fd, select.POLLIN, 0)
    if count < 2:
        batch.add(NR.write, fd, struct.pack("=Q", 2 - count), 8)
    read = len(batch)
    batch.add(NR.read, fd, ArgumentOf(read, 3), 8, 0)  # read() ignores its fourth argument: the count goes there
    if count < 2:
        # A semaphore has 1 left, which is read too. So both kinds are empty now.
        look = batch.add(NR.poll, wanted, 1, 0, on_zero=read + 3)
        batch.add(NR.read, fd, ArgumentOf(read, 3), 8)
        if count:
            batch.add(NR.write, fd, struct.pack("=Q", count), 8)
    else:
        look = batch.add(NR.poll, wanted, 1, 0, on_zero=read + 2)
        batch.add(NR.write, fd, ArgumentOf(read, 3), 8)
    return look


def _outsiders(pids: Sequence[int]) -> dict[str, int]:
    """For the number of a counter, a process outside of the tree that has it open and that this user can see."""
    found: dict[str, int] = {}
    for pid, fd, link in procfs.open_descriptors({*pids, os.getpid()}):
        if link == _LINK:
            with suppress(OSError):  # closed meanwhile
                found[_id(procfs.read(f"/proc/{pid}/fdinfo/{fd}"))] = pid
    return found


def _id(info: bytes) -> str:
    """The number in fdinfo that only this counter has, of all that there are (5.2)."""
    return next(line for line in info.decode().splitlines() if line.startswith("eventfd-id:"))

"""eventfd: a counter (eventfd(2)).

Kept: the count, and whether it is a semaphore, if the kernel shows that: fdinfo has ``eventfd-semaphore`` since Linux
6.5. On an older kernel a semaphore cannot be told from a plain counter without changing it, and all are treated as
plain ones.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
)
from torpor.objects.opening import Opening
from torpor.remote.sys import closed_on_error, syscall

EFD_SEMAPHORE = 1
LARGEST = (1 << 64) - 2
"""ULLONG_MAX itself means overflow and cannot be written (fs/eventfd.c)."""


class Eventfd(Kind[None]):
    """A counter."""

    field = "eventfd"
    may_be_under_way = True

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == "anon_inode:[eventfd]"

    def grab(self, held: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing to grab: fdinfo has the count."""

    def describe(self, held: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Write its count, which fdinfo shows in hexadecimal."""
        out.eventfd.count = int(held.fields["eventfd-count"], 16)
        out.eventfd.semaphore = held.fields.get("eventfd-semaphore", "0") != "0"

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The count must be valid."""
        for description in mine.values():
            if description.eventfd.count > LARGEST:
                yield Reason("the image", "it holds an eventfd whose count cannot be")

    def make(self, description: Description, opening: Opening) -> int:
        """Make it, and write the count: eventfd2() itself takes only 32 bits of it."""
        flags = os.O_CLOEXEC | (EFD_SEMAPHORE if description.eventfd.semaphore else 0)
        with closed_on_error(syscall(NR.eventfd2, 0, flags)) as fd:
            if description.eventfd.count:
                os.write(fd, struct.pack("=Q", description.eventfd.count))
            return fd

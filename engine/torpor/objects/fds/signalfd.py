"""signalfd: reading signals from a descriptor (signalfd(2)).

Kept: its signal mask. Unread signals are pending in the process, and are kept there.

An epoll watch on it waits for the signals of the process that has added it (fs/signalfd.c, signalfd_poll), so the
process itself adds such a watch: see `torpor.objects.fds.made_in_process`.
"""

from __future__ import annotations

import os

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Description
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
)
from torpor.objects.opening import Opening
from torpor.remote.sys import syscall


class Signalfd(Kind[None]):
    """A descriptor to read signals from."""

    field = "signalfd"

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == "anon_inode:[signalfd]"

    def grab(self, open_file: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing to grab: fdinfo has the mask."""

    def describe(
        self, open_file: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its mask: bit n - 1 is signal n."""
        out.signalfd.mask = int(open_file.fields["sigmask"], 16)

    def make(self, description: Description, opening: Opening) -> int:
        """Make it with its mask; the kernel removes SIGKILL and SIGSTOP from any mask."""
        mask = description.signalfd.mask.to_bytes(8, "little")
        return syscall(NR.signalfd4, -1, mask, len(mask), os.O_CLOEXEC)

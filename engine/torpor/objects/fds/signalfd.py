"""signalfd: signals that are read (signalfd(2)).

Kept: which signals. Those that wait to be read wait in the process, and are kept there.

Whoever waits for one with epoll waits for the signals of the process that added it (fs/signalfd.c, signalfd_poll), so
that such a watch is added by the process itself: see `torpor.objects.fds.made_in_process`.
"""

from __future__ import annotations

import os

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Description
from torpor.objects.kind import Describing, GrabbedDescriptors, Kind, OpenFile, Opening, Seen
from torpor.remote.sys import syscall


class Signalfd(Kind[None]):
    """Signals to be read."""

    field = "signalfd"

    def matches(self, seen: Seen) -> bool:
        """Told by the link."""
        return seen.link == "anon_inode:[signalfd]"

    def grab(self, held: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing: fdinfo has the mask."""

    def describe(self, held: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Its mask: bit n - 1 is signal n."""
        out.signalfd.mask = int(held.fields["sigmask"], 16)

    def make(self, description: Description, opening: Opening) -> int:
        """With its mask; the kernel leaves SIGKILL and SIGSTOP out of any."""
        mask = description.signalfd.mask.to_bytes(8, "little")
        return syscall(NR.signalfd4, -1, mask, len(mask), os.O_CLOEXEC)

"""POSIX message queues: refused. A queue's messages can be read only by taking them out, in front of its readers.

Documented in: mq_overview(7). The kernel shows a queue as a file of 80 bytes without blocks in the root of a file
system that need not be mounted anywhere (ipc/mqueue.c, FILENT_SIZE).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from torpor.objects.description import Family, GrabbedDescriptors, Held, Problem, Seen
from torpor.objects.unkept import CLOSE, Unkept
from torpor.objects.vmas import DELETED

_SIZE = 80


class MessageQueue(Unkept):
    """A descriptor of a queue, with a name or without."""

    def matches(self, seen: Seen) -> bool:
        """A file of the right shape that no path leads to, as every other file's would."""
        status = seen.stat
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_blocks) != (_SIZE, 0):
            return False
        if os.major(status.st_dev) or seen.link.rfind("/") != 0:
            return False
        try:
            there = os.stat(seen.link.removesuffix(DELETED.decode()))
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino)

    def judge(self, held: Held[Family | None], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """Always refused."""
        yield Problem("a POSIX message queue is not kept", CLOSE)

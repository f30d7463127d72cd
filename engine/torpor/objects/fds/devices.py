"""Character devices without state, which are opened again by name.

These are /dev/null, zero, full, random and urandom (Documentation/admin-guide/devices.txt: major 1). Any other device
may have state that only its driver knows, and is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
)
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_FCNTL, Opening, words
from torpor.objects.paths.opener import Opener, Openers

MEMORY_DEVICES = 1
STATELESS = {3: "null", 5: "zero", 7: "full", 8: "random", 9: "urandom"}


class CharDevice(Kind[None]):
    """A device without state."""

    field = "device"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """By the device number; the name only serves to open it again."""
        return stat.S_ISCHR(seen.stat.st_mode) and _stateless(seen.stat)

    def grab(self, open_file: OpenFile[None], pidfd: int, *, content: bool) -> None:
        """Nothing to grab: it has no state."""

    def unsupported(self, open_file: OpenFile[None], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """The name must lead to such a device."""
        try:
            now = os.stat(open_file.link)
        except OSError as error:
            yield Unsupported(f"its name does not lead to it here: {error.strerror}")
            return
        if now.st_rdev != open_file.stat.st_rdev or not stat.S_ISCHR(now.st_mode):
            yield Unsupported("its name does not lead to it here")

    def describe(
        self, open_file: OpenFile[None], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its name and device number."""
        out.device.path = os.fsencode(open_file.link)
        out.device.major = os.major(open_file.stat.st_rdev)
        out.device.minor = os.minor(open_file.stat.st_rdev)

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """It must exist, and this user must be able to open it."""
        openers = Openers(image)
        for index, description in mine.items():
            try:
                os.close(_open(description, openers.description(index)))
            except OSError as error:
                yield Reason(words(description), f"it cannot be opened: {error.strerror}")
            except RestoreFailed as error:
                yield Reason(words(description), error.message)

    def make(self, description: Description, opening: Opening) -> int:
        """Open it by name, if the device number is the same."""
        return _open(description, opening.opener)


def _stateless(status: os.stat_result) -> bool:
    return os.major(status.st_rdev) == MEMORY_DEVICES and os.minor(status.st_rdev) in STATELESS


def _open(description: Description, opener: Opener) -> int:
    fd = opener.lookup(description.device.path)
    status = os.fstat(fd)
    numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    wanted = (description.device.major, description.device.minor)
    if not stat.S_ISCHR(status.st_mode) or numbers != wanted or not _stateless(status):
        os.close(fd)
        raise RestoreFailed(f"{words(description)} is not the character device {wanted[0]}:{wanted[1]} here")
    return opener.opened(description.device.path, fd, description.flags & (KEPT_AT_OPEN | KEPT_BY_FCNTL))

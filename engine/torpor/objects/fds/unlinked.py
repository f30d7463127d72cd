"""Regular files without a name: deleted while they are open, or made with O_TMPFILE. Their content is in the image.

On NFS and FUSE such a file has a name that vanishes with its last user (`torpor.objects.paths.file_names.SILLY`).

They are kept like shared memory (`torpor.objects.memory.shared_memory`): holes stay holes, and mappings of the file
lead to it again. They come back in the directory where they were, if this user may write there, else in memory.

The content can change at any moment, so it is copied under the freeze; a file with more than `LARGEST` bytes on disk is
refused. Refused too: files that this user may not read, and those that were opened with O_DIRECT.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from torpor.image.image_pb2 import Description
from torpor.objects.fds.memfd import MemoryDescriptor
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    is_path,
)
from torpor.objects.paths import file_attributes
from torpor.objects.paths.file_attributes import Attributes
from torpor.objects.paths.file_names import DELETED, is_silly
from torpor.objects.paths.opener import O_TMPFILE

LARGEST = 256 << 20
"""In bytes; reading this from the page cache takes a tenth of a second."""
BLOCK = 512
"""The unit of st_blocks (stat(2))."""


class Unlinked(MemoryDescriptor):
    """A file without a name. `MemoryDescriptor` restores it."""

    field = ""

    def matches(self, seen: Seen) -> bool:
        """A regular file without links, or that loses its last one when it is closed."""
        gone = seen.stat.st_nlink == 0 or is_silly(seen.link)
        return stat.S_ISREG(seen.stat.st_mode) and gone and seen.link.startswith("/")

    def grab(self, open_file: OpenFile[Attributes], pidfd: int, *, content: bool) -> Attributes:
        """Read its attributes; files on disk have no seals."""
        if open_file.stat.st_nlink and not open_file.link.endswith(DELETED):
            open_file.link += DELETED
        if is_path(open_file):
            return Attributes()
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return file_attributes.take(copy)

    def unsupported(self, open_file: OpenFile[Attributes], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be quick to read."""
        size = open_file.stat.st_blocks * BLOCK
        if is_path(open_file):
            yield Unsupported("it has no name any more and is open as a name only (O_PATH)", "close it")
        elif size > LARGEST:
            yield Unsupported(
                f"it has no name any more, and its {size >> 20} MiB are more than the {LARGEST >> 20} MiB"
                " that are copied while the program stands still",
                "give it a name",
            )
        elif open_file.flags & os.O_DIRECT:
            yield Unsupported("it has no name any more and is open for direct access (O_DIRECT)", "clear the flag")
        else:
            yield from self.unsupported_content(open_file, tree)

    def describe(
        self, open_file: OpenFile[Attributes], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """As a file in memory. O_TMPFILE is kept only for O_RDWR, since a restore makes the file with O_RDWR."""
        if out.flags & os.O_ACCMODE != os.O_RDWR:
            out.flags &= ~(O_TMPFILE | os.O_DIRECTORY)
        super().describe(open_file, out, tree, image)

"""O_PATH descriptors of objects other than files and directories: symbolic links, devices, named pipes, sockets.

Kept: the path, the type, and the number of a device. The path is looked up again but not opened: this has no effect on
a device, and no pipe gets a reader. A symbolic link must have the same target. The file of a socket of the tree is
looked up as soon as the restore has made it, before the descriptor is sent to a socket's queue.

Refused: one that has no name any more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial

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
from torpor.objects.opening import Opening, naming, words
from torpor.objects.paths import own_places
from torpor.objects.paths.opener import Opener, Openers, socket_path
from torpor.objects.sockets import unix_names

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}


class NameOnly(Kind[bytes]):
    """A path. The state is the target of a symbolic link."""

    field = "name"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """Never by the file alone: see `torpor.objects.fds.grabbing`."""
        return False

    def grab(self, open_file: OpenFile[bytes], pidfd: int, *, content: bool) -> bytes:
        """Read the target of a symbolic link."""
        if not stat.S_ISLNK(open_file.stat.st_mode):
            return b""
        try:
            return os.fsencode(os.readlink(open_file.link))
        except OSError:  # it was removed: `unsupported` says so
            return b""

    def unsupported(self, open_file: OpenFile[bytes], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """The path must still lead to it."""
        try:
            found = open_file.link.startswith("/") and os.path.samestat(os.lstat(open_file.link), open_file.stat)
        except OSError:
            found = False
        if not found:
            yield Unsupported("it is open with O_PATH, and its name is gone", "close it before the checkpoint")

    def describe(
        self, open_file: OpenFile[bytes], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its path and type."""
        out.name.path = os.fsencode(open_file.link)
        out.name.mode = open_file.stat.st_mode
        out.name.device = open_file.stat.st_rdev
        out.name.target = open_file.state

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """It must exist and have the same type."""
        openers = Openers(image)
        for index, description in mine.items():
            if _is_own_socket(description, image):
                continue
            try:
                os.close(_find(description, openers.description(index)))
            except OSError as error:
                if why := own_places.why_missing(image, description.name.path, error, openers.description(index)):
                    yield Reason(words(description), f"it cannot be found: {why}", "put it back")
            except RestoreFailed as error:
                yield Reason(words(description), error.message, "put it back")

    def make(self, description: Description, opening: Opening) -> int:
        """Look the path up again."""
        if _is_own_socket(description, opening.image):
            opening.later.append(partial(_find_later, opening.making, description, opening))
            return os.open("/", os.O_PATH | os.O_CLOEXEC)
        return _find(description, opening.opener)


def _is_own_socket(description: Description, image: Tree) -> bool:
    """Whether it is the file of a socket of the tree, which the restore makes anew."""
    sockets = (one.unix for one in image.descriptions if one.WhichOneof("kind") == "unix")
    return stat.S_ISSOCK(description.name.mode) and any(
        unix_names.owns(unix) and socket_path(unix) == description.name.path for unix in sockets
    )


def _find_later(index: int, description: Description, opening: Opening) -> None:
    with naming(description):
        path = description.name.path
        fd = _find(description, opening.openers.description(index), opening.bound.get(path, path))
    try:
        os.dup2(fd, opening.slots[index])
    finally:
        os.close(fd)


def _find(description: Description, opener: Opener, at: bytes = b"") -> int:
    said = description.name
    kind = stat.S_IFMT(said.mode)
    fd = opener.lookup(at or said.path, follow=not description.flags & os.O_NOFOLLOW)
    found = os.fstat(fd)
    target = os.fsencode(os.readlink("", dir_fd=fd)) if stat.S_ISLNK(found.st_mode) else b""
    if (stat.S_IFMT(found.st_mode), found.st_rdev, target) != (kind, said.device, said.target):
        os.close(fd)
        raise RestoreFailed(f"it is not the {_KINDS.get(kind, 'thing')} that it was")
    return fd

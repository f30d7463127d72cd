"""Files in memory: memfd_create(2) and /dev/shm, named or not. Their content is in the image.

They are memory that processes share, so `torpor.objects.memory.shared_memory` keeps their content, whether they are
mapped or not; this module keeps their descriptors. A descriptor that was opened again (/proc/PID/fd) comes back as a
separate description.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import FileIO

from torpor.errors import Reason
from torpor.image.image_pb2 import Description, SharedMemory, Tree
from torpor.objects.kind import (
    Describing,
    FdReference,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    is_path,
    why_not_by_name,
)
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_FCNTL, Opening
from torpor.objects.paths import file_attributes
from torpor.objects.paths.file_attributes import Attributes
from torpor.objects.paths.file_names import lasting_name
from torpor.objects.paths.opener import O_TMPFILE
from torpor.remote.sys import closed_on_error, memfd_create

F_GET_SEALS = 1034
SHM = "/dev/shm/"
MEMFD = "/memfd:"


@dataclass(frozen=True)
class MemoryFile:
    """A file in memory that a tree has open."""

    link: bytes
    """Its name in /proc/PID/fd and maps."""
    stat: os.stat_result
    attributes: Attributes
    holder: FdReference
    """A descriptor of it."""
    ours: FileIO | None
    """Our own file, if no process has it."""

    def open(self) -> int:
        """A read-only descriptor of a new description: seeking in a copy would move the target's position."""
        if self.ours is not None:
            return os.dup(self.ours.fileno())
        path = f"/proc/{self.holder.pid}/fd/{self.holder.fd}"
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
        except PermissionError:  # it is another user's, so its access time changes
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class MemoryDescriptor(Kind[Attributes]):
    """A descriptor of a file in memory."""

    field = "memfd"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """A file of /dev/shm, or a memfd. The device identifies a memfd: a file on disk may have such a name."""
        if not stat.S_ISREG(seen.stat.st_mode):
            return False
        return seen.link.startswith(SHM) or (seen.link.startswith(MEMFD) and seen.stat.st_dev == memfd_device())

    def grab(self, open_file: OpenFile[Attributes], pidfd: int, *, content: bool) -> Attributes:
        """Read its attributes."""
        if is_path(open_file):
            return Attributes()
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return file_attributes.take(copy, _seals(copy))

    def unsupported(self, open_file: OpenFile[Attributes], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its name, if it has one, must lead to it."""
        if is_path(open_file):
            yield Unsupported("a file in memory is open as a name only (O_PATH)", "close it")
            return
        open_file.link = lasting_name(open_file.link, open_file.stat)
        if open_file.stat.st_nlink and (why := why_not_by_name(open_file, tree)):
            yield Unsupported(f"it cannot be opened again by its name: {why}", "give it a name and rights that last")
        yield from self.unsupported_content(open_file, tree)

    def unsupported_content(self, open_file: OpenFile[Attributes], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be possible to read it without changing it, and to write it again."""
        holder = open_file.references[0]
        if open_file.state.forbids_writing:
            yield Unsupported("it is immutable or append-only, and has no name", "take the flag away (chattr)")
        if open_file.leased:
            yield Unsupported("it has a lease (F_SETLEASE), which reading it would break", "give the lease up")
        if not tree.content and not os.access(
            f"/proc/{holder.pid}/fd/{holder.fd}", os.R_OK, effective_ids=True
        ):  # under the freeze it was read
            yield Unsupported(
                "this user may not read it, and its content is in no other place", "let its owner read it"
            )

    def notices(self, mine: Sequence[OpenFile[Attributes]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Name the attributes that no restore sets."""
        for open_file in mine:
            if open_file.state.lost:
                yield f"attributes of {open_file.link} are not kept: {', '.join(open_file.state.lost)}"

    def describe(
        self, open_file: OpenFile[Attributes], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write the index of its memory."""
        out.memfd.shared = image.shared(open_file.stat.st_dev, open_file.stat.st_ino)
        out.memfd.position = open_file.position

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The memory must be in the image."""
        for description in mine.values():
            if description.memfd.shared >= len(image.shared):
                yield Reason("the image", f"it names shared memory {description.memfd.shared}: there is none")

    def make(self, description: Description, opening: Opening) -> int:
        """Make a description of the memory, at its position. One is the description that created the file.

        The kernel does not execute a file that is open for writing (ETXTBSY), but it does execute a memfd by the
        description that created it. Also, only that description shows O_TMPFILE.
        """
        flags = description.flags & (KEPT_AT_OPEN | KEPT_BY_FCNTL) & ~(os.O_NOFOLLOW | os.O_DIRECTORY)
        memory = opening.shared(description.memfd.shared)
        if opening.making == _first(description.memfd.shared, opening.image):
            fd = os.dup(memory)
        else:
            fd = os.open(f"/proc/self/fd/{memory}", flags | os.O_CLOEXEC)
        with closed_on_error(fd):
            os.lseek(fd, description.memfd.position, os.SEEK_SET)
            return fd


def _first(shared: int, image: Tree) -> int:
    """The index of the description that has created a file, by its flags; -1 if there is none."""
    memory = image.shared[shared]
    if memory.kind == SharedMemory.MEMFD:
        wanted = os.O_RDWR
    elif is_temporary(memory):
        wanted = os.O_RDWR | os.O_DIRECTORY | O_TMPFILE
    else:
        return -1
    ways = ((k, one) for k, one in enumerate(image.descriptions) if one.WhichOneof("kind") == "memfd")
    mask = (KEPT_AT_OPEN | O_TMPFILE) & ~os.O_NOFOLLOW
    return next((k for k, one in ways if one.memfd.shared == shared and one.flags & mask == wanted), -1)


def is_temporary(memory: SharedMemory) -> bool:
    """Whether a file never had a name, and may still get one: its name is its inode number (O_TMPFILE)."""
    return memory.kind == SharedMemory.UNLINKED and os.path.basename(memory.name) == b"#%d" % memory.ino


def _seals(fd: int) -> int:
    """F_SEAL_* of a file."""
    try:
        return fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # its file system has none
            raise
        return 0


def memory_files(tree: GrabbedDescriptors) -> list[MemoryFile]:
    """The files in memory that a tree has open, each once, except those that the restorer has given it."""
    found: dict[tuple[int, int], MemoryFile] = {}
    for open_file in tree.of(MemoryDescriptor):
        if tree.is_given(open_file):
            continue
        link = os.fsencode(lasting_name(open_file.link, open_file.stat))
        if open_file.leased:
            continue  # it is refused
        file = MemoryFile(link, open_file.stat, open_file.state, open_file.references[0], open_file.ours)
        found.setdefault((open_file.stat.st_dev, open_file.stat.st_ino), file)
    return list(found.values())


@cache
def memfd_device() -> int:
    """The device of the kernel's own tmpfs, which holds memfds."""
    fd = memfd_create(b"torpor-probe")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)

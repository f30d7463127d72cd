"""Named pipes (fifo(7)): kept like pipes, but opened again by name.

Kept: what is kept of pipes, if both ends are in the tree or the other end is not open. If the other end of standard
input, output or error is outside, the restorer's own descriptor replaces it. A restore is refused if another process
has the named pipe open and it has content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.fds.pipes import SPLICE_F_NONBLOCK, Pipe, PipeState, fill
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    why_not_by_name,
)
from torpor.objects.opening import KEPT_BY_LINK, Opening, naming, words
from torpor.objects.paths import own_places
from torpor.objects.paths.directories import (
    describe,
    open_writable_directory,
    recreate_removed,
    restore_owner_and_mode,
    warn_if_renamed,
)
from torpor.objects.paths.file_names import DELETED
from torpor.objects.paths.opener import Identity, Opener, Openers
from torpor.objects.sockets import common
from torpor.remote.sys import closed_on_error, try_syscall

AT_EACCESS, AT_EMPTY_PATH = 0x200, 0x1000
"""Of faccessat2(2)."""


class Fifo(Pipe):
    """An end of a named pipe."""

    field = "fifo"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """A pipe with a path."""
        return stat.S_ISFIFO(seen.stat.st_mode) and seen.link.startswith("/")

    def grab(self, open_file: OpenFile[PipeState], pidfd: int, *, content: bool) -> PipeState:
        """As for a pipe; but poll() reports no writers only if there was one (fs/pipe.c, pipe_poll)."""
        state = super().grab(open_file, pidfd, content=content)
        if open_file.flags & os.O_ACCMODE == os.O_RDONLY and state.other_end_open:
            with borrowed(pidfd, open_file.references[0].fd) as copy:
                state.unwritten = not _has_writer(copy)
                state.other_end_open = not state.unwritten
        return state

    def outside(self, open_file: OpenFile[PipeState], tree: GrabbedDescriptors) -> str:
        """As for a pipe."""
        return f"named pipe {open_file.link}" if super().outside(open_file, tree) else ""

    def unsupported(self, open_file: OpenFile[PipeState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its name must lead to it, unless it has no name any more or the restorer's descriptor replaces it."""
        yield from super().unsupported(open_file, tree)
        if open_file.stat.st_nlink and not self.outside(open_file, tree) and (why := why_not_by_name(open_file, tree)):
            yield Unsupported(f"it cannot be opened again by its name: {why}", "give it a name and rights that last")

    def describe(
        self, open_file: OpenFile[PipeState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write the end, and with the first end the pipe."""
        out.fifo.pipe = self.index(open_file, image)
        out.fifo.path = os.fsencode(open_file.link)
        describe(open_file.stat, out.fifo.inode)
        if not open_file.stat.st_nlink:
            out.fifo.path, out.fifo.inode.removed = out.fifo.path.removesuffix(DELETED.encode()), True
        out.fifo.unwritten = open_file.state.unwritten

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """They must exist. None is opened: a reader would see a writer come and go."""
        openers = Openers(image)
        for index, description in mine.items():
            if description.fifo.pipe >= len(image.pipes):
                yield Reason("the image", f"it names pipe {description.fifo.pipe}, which is not in it")
                continue
            try:
                if description.fifo.inode.removed:
                    os.close(open_writable_directory(description.fifo.path, openers.description(index)))
                    continue
                fd = openers.description(index).lookup(description.fifo.path, known=_known(description))
                try:
                    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                        yield Reason(words(description), "it is not a named pipe any more")
                        continue
                    how = os.R_OK | os.W_OK
                    openers.description(index).call(NR.faccessat2, fd, b"\0", how, AT_EMPTY_PATH | AT_EACCESS)
                finally:
                    os.close(fd)
            except OSError as error:
                if why := own_places.why_missing(image, description.fifo.path, error, openers.description(index)):
                    yield _cannot_open(description, why)

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """They must have no content."""
        openers = Openers(image)
        for index, description in mine.items():
            if description.fifo.inode.removed:
                continue
            try:
                os.close(_open(description, openers.description(index)))
            except OSError as error:
                if why := own_places.why_missing(image, description.fifo.path, error, openers.description(index)):
                    yield _cannot_open(description, why)
            except RestoreFailed as error:
                yield Reason(words(description), error.message)

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Open each once read-write, so that no open() blocks; fill it, and keep the ends that the tree had."""
        by_pipe: dict[int, list[int]] = {}
        for index, description in mine.items():
            by_pipe.setdefault(description.fifo.pipe, []).append(index)
        for number, indexes in by_pipe.items():
            with naming(mine[indexes[0]]):
                opener = opening.openers.description(indexes[0])
                both = (_make if mine[indexes[0]].fifo.inode.removed else _open)(mine[indexes[0]], opener)
                if mine[indexes[0]].fifo.inode.removed:
                    opening.warnings += warn_if_renamed(mine[indexes[0]].fifo.path, both)
                try:
                    fill(opening.image.pipes[number], both, opening.warnings)
                    for index in indexes:
                        opening.place(index, _end(mine[index], both, opening.openers.description(index)))
                finally:
                    os.close(both)
                for index in indexes:
                    if mine[index].fifo.unwritten:  # it was opened before there was a writer
                        reader = opening.slots.pop(index)
                        try:
                            opening.place(index, _end(mine[index], reader, opening.openers.description(index)))
                        finally:
                            os.close(reader)


def _cannot_open(description: Description, why: str) -> Reason:
    return Reason(words(description), f"it cannot be opened: {why}", "make it again (mkfifo)")


def _end(description: Description, fd: int, opener: Opener) -> int:
    """A description of a named pipe that is open as `fd`, with its flags."""
    flags = description.flags & KEPT_BY_LINK | os.O_NONBLOCK
    if description.flags & os.O_NOFOLLOW and not description.fifo.inode.removed:
        return opener.opened(description.fifo.path, os.dup(fd), flags | os.O_NOFOLLOW, _known(description))
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _known(description: Description) -> Identity | None:
    inode = description.fifo.inode
    return (inode.dev, inode.ino) if inode.ino else None


def _has_writer(reader: int) -> bool:
    """Whether there is a writer, or unread data: else it is at its end."""
    ours, other = os.pipe2(os.O_CLOEXEC)
    try:
        return try_syscall(NR.tee, reader, other, 1, SPLICE_F_NONBLOCK) != 0
    finally:
        os.close(ours)
        os.close(other)


def _open(description: Description, opener: Opener) -> int:
    """Open both ends at once.

    Raises:
        OSError: it does not exist, or this user may not open it.
        RestoreFailed: it is not a named pipe, or is in use.
    """
    known = _known(description)
    fd = opener.lookup(description.fifo.path, known=known)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise RestoreFailed(f"{words(description)} is not a named pipe any more")
    both = opener.reopened(fd, os.O_RDWR | os.O_NONBLOCK, known)
    if common.queued(both):
        os.close(both)
        raise RestoreFailed(f"{words(description)} is in use: another program has it open, and it has unread content")
    return both


def _make(description: Description, opener: Opener) -> int:
    """Both ends of a new named pipe whose name was removed again."""

    def make(path: bytes) -> int:
        opener.mkfifo(path)
        try:
            with closed_on_error(opener.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)) as fd:
                restore_owner_and_mode(fd, description.fifo.inode, opener)
                return fd
        finally:
            opener.unlink(path)

    return recreate_removed(description.fifo.path, opener, make)

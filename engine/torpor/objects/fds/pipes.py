"""Pipes with both ends in the tree, and their content.

Kept: capacity, content, packet boundaries (O_DIRECT, pipe(2)), and that nobody has the other end any more: then a
reader sees the end of file, and a writer EPIPE. A pipe whose other end is open outside of the tree is refused, except
as standard input, output and error: the restorer's own descriptors replace these.

Content is copied with tee(2), which does not consume it, to a pipe of ours. The kernel marks each write as a packet or
not, and the writer's flags may have changed since, or the writer may be gone. Only reads of the copy tell: a read ends
with the first packet that it meets, and drops the rest of it (fs/pipe.c, pipe_read()).
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, PipeBuffer, PipeRun, Tree
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import KEPT_BY_LINK, O_LARGEFILE, Opening, naming
from torpor.remote.sys import syscall

# include/uapi/linux/fcntl.h; Python 3.10 has them in fcntl, older headers did not
F_SETPIPE_SZ = 1031
F_GETPIPE_SZ = 1032
SPLICE_F_NONBLOCK = 2
"""Of splice(2) and tee(2)."""


@dataclass
class PipeState:
    """An end of a pipe as it was."""

    capacity: int
    other_end_open: bool
    """Whether any process has the other end."""
    queued: int
    """Bytes in the pipe."""
    content: bytes = b""
    """What is in the pipe. Only for a read end."""
    runs: list[PipeRun] = field(default_factory=list)
    """How it was written, all of it in turn."""
    unwritten: bool = False
    """Whether it is a named pipe's reader that never had a writer."""
    ends: list[OpenFile[PipeState]] = field(default_factory=list)
    """All ends of this pipe in the tree, including itself."""


class Pipe(Kind[PipeState]):
    """An end of a pipe."""

    field = "pipe"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """A pipe without a path."""
        return stat.S_ISFIFO(seen.stat.st_mode) and seen.link.startswith("pipe:[")

    def grab(self, open_file: OpenFile[PipeState], pidfd: int, *, content: bool) -> PipeState:
        """Read capacity, whether the other end is open, and at a read end the content."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            capacity = fcntl.fcntl(copy, F_GETPIPE_SZ)
            queued = unread(copy)
            poll = select.poll()
            poll.register(copy, 0)
            # fs/pipe.c, pipe_poll(): a reader without writers has POLLHUP, a writer without readers POLLERR
            alone = any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
            state = PipeState(capacity, open_file.flags & os.O_ACCMODE == os.O_RDWR or not alone, queued)
            if content and queued and open_file.readable:
                state.content, state.runs = _read(copy, capacity)
        return state

    def finish(self, mine: list[OpenFile[PipeState]], tree: GrabbedDescriptors) -> None:
        """Find the ends of each pipe, by the inode: two FIFOs may have had one name."""
        pipes: dict[tuple[int, int], list[OpenFile[PipeState]]] = {}
        for open_file in mine:
            open_file.state.ends = pipes.setdefault((open_file.stat.st_dev, open_file.stat.st_ino), [])
            open_file.state.ends.append(open_file)

    def outside(self, open_file: OpenFile[PipeState], tree: GrabbedDescriptors) -> str:
        """The pipe, if its other end is open, but not in the tree."""
        ends = open_file.state.ends
        both = any(end.readable for end in ends) and any(end.writable for end in ends)
        return "" if both or not open_file.state.other_end_open else open_file.link

    def unread(self, open_file: OpenFile[PipeState]) -> int:
        """What is in the pipe, for a reader."""
        return open_file.state.queued if open_file.readable else 0

    def unsupported(self, open_file: OpenFile[PipeState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """All of the content must have been read."""
        if tree.content and open_file.readable and len(open_file.state.content) != open_file.state.queued:
            yield Unsupported(
                f"only {len(open_file.state.content)} of its {open_file.state.queued} bytes could be read",
                "see /proc/sys/fs/pipe-max-size, or try again",
            )

    def describe(
        self, open_file: OpenFile[PipeState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write the end, and with the first end the pipe."""
        out.pipe.pipe = self.index(open_file, image)

    def index(self, open_file: OpenFile[PipeState], image: Describing) -> int:
        """The index of the pipe in the image, which its first end adds."""
        key = open_file.stat.st_dev, open_file.stat.st_ino
        if key not in image.pipes:
            image.pipes[key] = len(image.tree.pipes)
            pipe = image.tree.pipes.add(capacity=open_file.state.capacity)
            reader = next((end.state for end in open_file.state.ends if end.readable), None)
            if reader and reader.content:
                pipe.content, runs = reader.content, reader.runs
                if runs[-1].size == 1 and any(end.flags & os.O_DIRECT for end in open_file.state.ends):
                    runs[-1].packet = True  # no read tells: there is nothing to drop
                if any(run.packet for run in runs):
                    pipe.runs.extend(runs)
        return image.pipes[key]

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The pipes must be in the image, and this host must allow their capacity."""
        with open("/proc/sys/fs/pipe-max-size", encoding="ascii") as file:
            largest = int(file.read())
        for description in mine.values():
            if description.pipe.pipe >= len(image.pipes):
                yield Reason("the image", f"it names pipe {description.pipe.pipe}, which is not in it")
        for pipe in image.pipes:
            if pipe.capacity > largest and not procfs.is_root():
                yield Reason(
                    "a pipe of the image",
                    f"its capacity is {pipe.capacity} bytes, and here a user's pipe may have {largest} at most",
                    "have the administrator raise /proc/sys/fs/pipe-max-size",
                )

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make each pipe once, fill it, and keep the ends that the tree had."""
        by_pipe: dict[int, list[int]] = {}
        for index, description in mine.items():
            by_pipe.setdefault(description.pipe.pipe, []).append(index)
        for number, indexes in by_pipe.items():
            with naming(mine[indexes[0]]):
                _make(opening, number, {index: mine[index].flags for index in indexes})


def _make(opening: Opening, number: int, flags: dict[int, int]) -> None:
    """Make a pipe and keep the ends in `flags`: status flags by the index of the description."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    unused = {os.O_RDONLY: reader, os.O_WRONLY: writer}
    try:
        fill(opening.image.pipes[number], writer, opening.warnings)
        for index, wanted in flags.items():
            if (mode := wanted & os.O_ACCMODE) in unused and not wanted & O_LARGEFILE:
                end = os.dup(unused.pop(mode))
            else:  # opened again (/proc/PID/fd): a separate description; and open() sets O_LARGEFILE
                end = os.open(f"/proc/self/fd/{reader}", wanted & KEPT_BY_LINK | os.O_NONBLOCK | os.O_CLOEXEC)
            opening.place(index, end)
    finally:
        os.close(reader)
        os.close(writer)


class _Copy:
    """A copy of a pipe's content in a pipe of ours, to be read as the content would be, which stays where it is."""

    def __init__(self, reader: int, capacity: int) -> None:
        self._out, fill = os.pipe2(os.O_CLOEXEC)
        self._capacity = capacity
        try:
            fcntl.fcntl(fill, F_SETPIPE_SZ, capacity)
            syscall(NR.tee, reader, fill, capacity)
        except BaseException:
            os.close(self._out)
            raise
        finally:
            os.close(fill)

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)

    def read(self, size: int = 0) -> bytes:
        """What a read of `size` bytes returns, or one of any size."""
        return os.read(self._out, size or self._capacity)

    def left(self) -> int:
        """Bytes that are not read yet."""
        return unread(self._out)


class _Copies:
    """Copies of a pipe's content from which some reads of any size have taken what they return."""

    def __init__(self, reader: int, capacity: int, reads: int) -> None:
        self._reader, self._capacity, self._reads = reader, capacity, reads

    def cuts(self, at: int) -> bool:
        """Whether a further read of `at` bytes ends within a packet, whose rest is dropped."""
        with _Copy(self._reader, self._capacity) as copy:
            for _ in range(self._reads):
                copy.read()
            left = copy.left()
            copy.read(at)
            return copy.left() < left - at


def unread(reader: int) -> int:
    """Bytes in a pipe."""
    number: int = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0]
    return number


def _read(reader: int, capacity: int) -> tuple[bytes, list[PipeRun]]:
    """The content of a pipe, and how it was written; it stays in the pipe."""
    with _Copy(reader, capacity) as copy:
        pieces = list(iter(copy.read, b""))
    runs = []
    for before, piece in enumerate(pieces):
        stream = _stream_of(_Copies(reader, capacity, before), len(piece), is_last=before == len(pieces) - 1)
        runs += [PipeRun(size=stream)] * (stream > 0)
        runs += [PipeRun(size=len(piece) - stream, packet=True)] * (stream < len(piece))
    return b"".join(pieces), runs


def _stream_of(copies: _Copies, size: int, *, is_last: bool) -> int:
    """How many bytes of what one read returned, at its start, are no part of the packet that ended it."""
    if is_last and (size == 1 or not copies.cuts(size - 1)):
        return size  # it ended since there is no more
    if size > 1 and copies.cuts(1):
        return 0
    return bisect.bisect_left(range(1, size), True, key=copies.cuts)


def fill(pipe: PipeBuffer, writer: int, warnings: list[str]) -> None:
    """Set a pipe's capacity and write its content, each packet as one.

    If other pipes of this user have used up the user's limit (pipe-user-pages-soft), the capacity is not changed;
    `warnings` says so.

    Raises:
        RestoreFailed: the content does not fit.
    """
    if fcntl.fcntl(writer, F_GETPIPE_SZ) != pipe.capacity:
        try:
            fcntl.fcntl(writer, F_SETPIPE_SZ, pipe.capacity)
        except PermissionError:
            now = fcntl.fcntl(writer, F_GETPIPE_SZ)
            warnings.append(
                f"the capacity of a pipe is {now} bytes, and was {pipe.capacity}: this user's pipes have reached the"
                " limit /proc/sys/fs/pipe-user-pages-soft"
            )
    os.set_blocking(writer, False)
    content = memoryview(pipe.content)
    runs = list(pipe.runs) or [PipeRun(size=len(content))] * bool(content)
    for run, following in itertools.zip_longest(runs, runs[1:]):
        fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if run.packet else 0))
        put = _write_apart if following and not run.packet else os.write
        try:
            written = put(writer, content[: run.size])
        except BlockingIOError:
            written = 0
        if written != run.size:
            raise RestoreFailed(f"a pipe of {pipe.capacity} bytes does not take the {len(pipe.content)} bytes it held")
        content = content[run.size :]


def _write_apart(writer: int, content: memoryview) -> int:
    """Write so that the packet which follows stands by itself; the number of bytes.

    A write goes into the last page of a stream if that has room, packet or not (fs/pipe.c, pipe_write()). It never goes
    into a page that tee(2) has put there.
    """
    reader, fill = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(fill, F_SETPIPE_SZ, max(len(content), fcntl.fcntl(fill, F_GETPIPE_SZ)))
        os.write(fill, content)
        return syscall(NR.tee, reader, writer, len(content), SPLICE_F_NONBLOCK)
    finally:
        os.close(reader)
        os.close(fill)

"""POSIX message queues (mq_overview(7)) without messages.

Kept: name, or that it was unlinked, size, permissions, who has it open, and the position of read() in its status text.
Queues belong to an IPC namespace: a tree with queues is restored into one of its own, where init makes them again; the
old ones stay on the host until somebody removes them. Refused: a queue with messages, since reading them takes them out
before its readers; one with a registered notification (mq_notify(3)); one with a lease, which opening it breaks; one
that a process outside of the tree has open, as far as this user can see.

The kernel shows a queue as a file without blocks, in the root of a file system that need not be mounted anywhere; its
content shows a registered notification. Its size is 80 bytes (ipc/mqueue.c, FILENT_SIZE) until ftruncate(2) changes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, PosixQueue, Tree
from torpor.objects.fds import locks
from torpor.objects.kind import (
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_FCNTL, O_LARGEFILE, Opening
from torpor.objects.paths.file_names import DELETED
from torpor.remote.batch import Call, Result
from torpor.remote.naming import describe_process
from torpor.remote.sys import syscall

_SIZE = 80
_ATTRIBUTES = struct.Struct("=4q32x")  # struct mq_attr: flags, messages at most, bytes in each at most, messages now
DEFAULT_MESSAGES, DEFAULT_BYTES = 10, 8192
"""The limits of queues in a new namespace (include/linux/ipc_namespace.h)."""
_LONGEST = 255
"""NAME_MAX."""
_LIMITS = "/proc/sys/fs/mqueue/{}"
_OPEN_FLAGS = KEPT_AT_OPEN | KEPT_BY_FCNTL | O_LARGEFILE  # mq_open() does not set O_LARGEFILE, but open() does


@dataclass
class QueueState:
    """A queue as it was."""

    most: int
    """The maximal number of messages."""
    largest: int
    """The maximal size of a message in bytes."""
    waiting: int
    """The number of messages in it."""
    notifies: str = ""
    """Who will be notified, or why that is unknown."""


class MessageQueue(Kind[QueueState]):
    """A descriptor of a queue, with a name or without."""

    field = "queue"
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """What the kernel takes as a queue."""
        return seen.queue

    def grab(self, open_file: OpenFile[QueueState], pidfd: int, *, content: bool) -> QueueState:
        """Read its sizes, and who will be notified."""
        value = bytearray(_ATTRIBUTES.size)
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            syscall(NR.mq_getsetattr, copy, 0, value)
            _, most, largest, waiting = _ATTRIBUTES.unpack(value)
            return QueueState(most, largest, waiting, "" if open_file.leased else _notifies(copy))

    def unsupported(self, open_file: OpenFile[QueueState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """It must be empty, and open only in the tree."""
        state = open_file.state
        if open_file.leased:
            why = "it has a lease (F_SETLEASE), and finding out which process it notifies would break the lease"
            yield Unsupported(why, "give the lease up")
        if state.waiting:
            why = f"{state.waiting} messages lie in the POSIX message queue, which can be read only by taking them out"
            yield Unsupported(why, "try again when they were received", passing=True)
        if state.notifies:
            yield Unsupported(
                f"the POSIX message queue notifies {state.notifies}, which is not kept", "end that (mq_notify)"
            )
        if other := _outsider(open_file, tree.pids):
            yield Unsupported(
                f"{describe_process(other)}, outside of the tree, has the POSIX message queue open", "close it"
            )

    def describe(
        self, open_file: OpenFile[QueueState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its name, and its inode, which distinguishes it from others with the same name."""
        out.queue.removed = not open_file.stat.st_nlink
        name = open_file.link.removesuffix(DELETED) if out.queue.removed else open_file.link
        out.queue.name = os.fsencode(name.removeprefix("/"))
        out.queue.inode = open_file.stat.st_ino
        out.queue.mode = open_file.stat.st_mode & 0o777
        out.queue.uid, out.queue.gid = open_file.stat.st_uid, open_file.stat.st_gid
        out.queue.most, out.queue.largest = open_file.state.most, open_file.state.largest
        out.queue.position = open_file.position
        out.queue.size = open_file.stat.st_size

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """Names and sizes must be valid."""
        for description in mine.values():
            queue = description.queue
            named = 0 < len(queue.name) <= _LONGEST and b"/" not in queue.name and b"\0" not in queue.name
            sized = 0 < queue.most <= 1 << 16 and 0 < queue.largest <= 1 << 24
            if not named or not sized or max(queue.position, queue.size) >= 1 << 63:
                yield Reason("the image", "it has an invalid POSIX message queue")

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Reserve a slot for each, with /dev/null. Init opens the queue there, in its own namespace."""
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            for index in mine:
                opening.slots[index] = fcntl.fcntl(nothing, fcntl.F_DUPFD, opening.base)
        finally:
            os.close(nothing)


def may_be(link: str, status: os.stat_result) -> bool:
    """Whether a file may be a queue: it has no blocks, and is in the root of a file system without a device."""
    plain = stat.S_ISREG(status.st_mode) and not status.st_blocks and not os.major(status.st_dev)
    return plain and link.rfind("/") == 0


def is_queue(copy: int) -> bool:
    """Whether our copy of a descriptor refers to a queue. `may_be` has said that it may."""
    try:
        syscall(NR.mq_getsetattr, copy, 0, bytearray(_ATTRIBUTES.size))
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOSYS):
            return False
        raise
    return True


def _notifies(copy: int) -> str:
    """Who will be notified of a message."""
    try:
        fd = os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"a process that this user may not see ({error.strerror})"
    try:
        words = dict(word.split(b":", 1) for word in os.read(fd, 256).split())
    finally:
        os.close(fd)
    pid = int(words[b"NOTIFY_PID"])
    return f"process {pid}" if pid else ""


def _outsider(open_file: OpenFile[QueueState], pids: Sequence[int]) -> int:
    """A process outside of the tree that has a queue open; 0 if this user can see none."""
    for pid, fd, link in procfs.open_descriptors({*pids, os.getpid()}):
        if link == open_file.link:
            with suppress(OSError):  # closed meanwhile
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if (status.st_dev, status.st_ino) == (open_file.stat.st_dev, open_file.stat.st_ino):
                    return pid
    return 0


# By init


def of(image: Tree) -> list[tuple[int, Description]]:
    """The descriptions of an image that are queues, by index."""
    return [
        (index, one) for index, one in enumerate(image.descriptions) if one.WhichOneof("kind") == MessageQueue.field
    ]


def make(image: Tree, slots: dict[int, int], owner: bool) -> Iterator[list[Call]]:
    """Make the queues and open them at their slots. Init runs these tables, before any process is born.

    Args:
        image: the tree.
        slots: of each description.
        owner: whether the image's user ids are set.
    """
    mine = of(image)
    yield from _limits([one.queue for _, one in mine])
    groups: dict[int, list[tuple[int, Description]]] = {}
    for index, description in mine:
        groups.setdefault(description.queue.inode, []).append((index, description))
    # Unlinked queues first: other queues may have their names now.
    for group in sorted(groups.values(), key=lambda group: not group[0][1].queue.removed):
        for index, description in group:
            yield list(_open(description, slots[index], owner=owner, again=index != group[0][0]))
        queue = group[0][1].queue
        if queue.removed:
            yield [Call(NR.mq_unlink, (queue.name + b"\0",), 0, f"removing the name /{os.fsdecode(queue.name)}")]


def _open(description: Description, slot: int, *, owner: bool, again: bool) -> Iterator[Call]:
    # Without O_CLOEXEC: mq_open() makes each descriptor close-on-exec anyway, and with the flag fdinfo would show them
    # all as close-on-exec for good (ipc/mqueue.c).
    queue, flags = description.queue, description.flags & _OPEN_FLAGS
    words = f"opening the message queue /{os.fsdecode(queue.name)}"
    if again:
        yield Call(NR.mq_open, (queue.name + b"\0", flags, 0, 0), None, words)
    else:
        attributes = _ATTRIBUTES.pack(0, queue.most, queue.largest, 0)
        create = flags | os.O_CREAT | os.O_EXCL
        yield Call(NR.mq_open, (queue.name + b"\0", create, 0o600, attributes), None, words)
        if queue.size != _SIZE:
            yield Call(NR.mq_open, (queue.name + b"\0", os.O_WRONLY | os.O_CLOEXEC, 0, 0), None, words)
            yield Call(NR.ftruncate, (Result(1), queue.size), 0, f"setting the size of its file to {queue.size} bytes")
            yield Call(NR.close, (Result(1),), 0, "closing its second descriptor")
        if owner:
            yield Call(NR.fchown, (Result(0), queue.uid, queue.gid), 0, "giving it to its owner")
        yield Call(NR.fchmod, (Result(0), queue.mode), 0, "setting its rights")
    if queue.position:
        yield Call(NR.lseek, (Result(0), queue.position, os.SEEK_SET), queue.position, "seeking to its position")
    yield Call(NR.dup3, (Result(0), slot, 0), slot, "keeping it")
    yield from locks.calls(description, slot)
    yield Call(NR.close, (Result(0),), 0, "closing its first descriptor")


def _limits(queues: Iterable[PosixQueue]) -> Iterator[list[Call]]:
    """Let the namespace's queues be as large as the image's, if that is more than the default."""
    most = max((queue.most for queue in queues), default=0)
    largest = max((queue.largest for queue in queues), default=0)
    for name, value, usual in (("msg_max", most, DEFAULT_MESSAGES), ("msgsize_max", largest, DEFAULT_BYTES)):
        if value > usual:
            path, text = _LIMITS.format(name), b"%d" % value
            yield [
                Call(NR.open, (path.encode() + b"\0", os.O_WRONLY | os.O_CLOEXEC), None, f"opening {path}"),
                Call(NR.write, (Result(0), text, len(text)), len(text), f"setting it to {value}"),
                Call(NR.close, (Result(0),), 0, f"closing {path}"),
            ]

"""System V message queues.

Kept: id, key, permissions, size, and the messages in their order. They are read with MSG_COPY (msgrcv(2); Linux 3.8
with CONFIG_CHECKPOINT_RESTORE), which leaves them in the queue. A tree with queues is restored into an IPC namespace of
its own. Not kept: times, and the PIDs of the last sender and receiver. The old queues stay on the host until somebody
removes them.

Documented in: msgop(2), msgctl(2), sysvipc(7).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import EnteredTree
from torpor.objects.sysv.belonging import (
    IPC_SET,
    IPC_STAT,
    RIGHTS,
    Found,
    SystemV,
    Users,
    create,
    every,
    owner_of,
    owner_of_row,
    rows,
    status_room,
)
from torpor.remote.batch import Ask, Batch, Call, Out, Result

_STAT = struct.Struct("<iIIIII24x6QII16x")  # struct msqid64_ds (include/uapi/asm-generic/msgbuf.h)
_TYPE = struct.Struct("<q")
IPC_NOWAIT, MSG_COPY = 0o4000, 0o40000
MSG_INFO, MSG_STAT_ANY = 12, 13
_WAITING = (NR.msgrcv, NR.msgsnd)
"""Calls in which a thread may wait for a queue."""
DEFAULT_SIZE = 16384
"""MSGMNB: the size of a queue in a new namespace, in bytes."""
_ROOM = 40 << 10
"""Bytes of messages that one batch may read."""
_MSGMNB = b"/proc/sys/kernel/msgmnb\0"


class Status(NamedTuple):
    """The result of IPC_STAT for a queue."""

    key: int
    uid: int
    gid: int
    mode: int
    bytes: int
    """The size of all messages, in bytes."""
    messages: int
    size: int
    """The maximal size of the queue, in bytes (msg_qbytes)."""


@dataclass
class Queue:
    """A queue as it was."""

    id: int
    status: Status
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    """The type and the content of each message."""


@dataclass
class Queues:
    """The queues of a tree."""

    queues: list[Queue]
    reasons: list[Reason]
    """Why something cannot be kept."""


class MessageQueues(SystemV[Queues]):
    """The queues that belong to a tree."""

    def find(self, users: Users) -> Found:
        """Those that its processes used last."""
        found = Found()
        for row in rows("msg"):
            uses = ((row["lspid"], row["stime"]), (row["lrpid"], row["rtime"]))
            users.note(found, row["msqid"], "messages of the System V message queue", _WAITING, uses, owner_of_row(row))
        return found

    def find_all(self, ask: Ask) -> Found:
        """All queues."""

        def of_one(batch: Batch, index: int) -> int:
            return batch.add(NR.msgctl, index, MSG_STAT_ANY, status_room())

        return Found(every(ask, NR.msgctl, (0, MSG_INFO), of_one, 32))

    def grab(self, tree: EnteredTree) -> Queues:
        """Read them with their messages."""
        found, root = self.found(tree), tree.processes[0]
        queues, whys = grab(found.ids, root.ask)
        return Queues(queues, [*found.reasons, *(Reason(root.name, why) for why in whys)])

    def describe(self, grabbed: Queues, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Write them to the image."""
        for queue in grabbed.queues:
            describe(queue, image.queues.add())

    def validate_form(self, image: pb.Tree) -> Iterator[str]:
        """What in them is invalid."""
        for queue in image.queues:
            yield from validate_form(queue)

    def needs_ipc_namespace(self, image: pb.Tree) -> bool:
        """Their ids and keys are free there."""
        return bool(image.queues)

    def by_init(self, image: pb.Tree, host: None, *, owner: bool) -> Iterator[list[Call]]:
        """Make each queue, when the namespace lets queues be large enough."""
        if limit := list(enlarge(image)):
            yield limit
        yield from (list(make(queue, owner)) for queue in image.queues)


def grab(ids: Sequence[int], ask: Ask) -> tuple[list[Queue], list[str]]:
    """Read queues, and say what of them cannot be kept.

    Args:
        ids: the queues.
        ask: lets a process of the tree make calls.
    """
    found: list[Queue] = []
    reasons: list[str] = []
    for number in ids:
        batch = Batch()
        status = batch.add(NR.msgctl, number, IPC_STAT, Out(_STAT.size))
        replies = ask(batch)
        if (result := replies.result(status)) < 0:
            reasons.append(f"it may not query the System V message queue {number}: {os.strerror(-result)}")
            continue
        key, uid, gid, _, _, mode, _, _, _, used, count, size, _, _ = _STAT.unpack(replies.output(status, 2))
        queue = Queue(number, Status(key, uid, gid, mode, used, count, size))
        found.append(queue)
        if why := _copy(queue, ask):
            reasons.append(f"the messages of the System V queue {number} cannot be read: {why}")
    return found, reasons


def _copy(queue: Queue, ask: Ask) -> str:
    """Copy the messages. Returns why that fails, "" if it does not."""
    room = _TYPE.size + queue.status.bytes
    if room > _ROOM:
        return f"they are {queue.status.bytes} bytes, more than can be copied while the program stands still"
    while len(queue.messages) < queue.status.messages:
        batch = Batch()
        first = len(queue.messages)
        entries = [
            batch.add(NR.msgrcv, queue.id, Out(room), room - _TYPE.size, index, MSG_COPY | IPC_NOWAIT)
            for index in range(first, min(first + max(1, _ROOM // room), queue.status.messages))
        ]
        replies = ask(batch)
        for entry in entries:
            if (result := replies.result(entry)) < 0:
                return "the kernel has no MSG_COPY" if -result == errno.ENOSYS else os.strerror(-result)
            content = replies.output(entry, 1)
            queue.messages.append((_TYPE.unpack_from(content)[0], content[_TYPE.size : _TYPE.size + result]))
    return ""


def describe(queue: Queue, out: pb.MessageQueue) -> None:
    """Write a queue to the image."""
    out.id, out.size = queue.id, queue.status.size
    out.key, out.uid, out.gid, out.mode = queue.status[:4]
    for kind, content in queue.messages:
        out.messages.add(type=kind, content=content)


# Restore


def validate_form(queue: pb.MessageQueue) -> Iterator[str]:
    """What in an image's queue is invalid."""
    if any(message.type < 1 for message in queue.messages) or queue.size > 1 << 31:
        yield f"it has an invalid System V message queue {queue.id}"


def make(queue: pb.MessageQueue, owner: bool) -> Iterator[Call]:
    """Make a queue. Init runs these calls, in a table of their own.

    Args:
        queue: the queue.
        owner: whether the image's user ids are set.
    """
    name = f"System V message queue {queue.id}"
    rights = queue.mode & RIGHTS
    yield from create("msg", queue.id, NR.msgget, (queue.key,), rights, name)
    uid, gid = owner_of(queue.uid, queue.gid, owner=owner)
    content = _STAT.pack(queue.key, uid, gid, 0, 0, rights | 0o600, 0, 0, 0, 0, 0, queue.size, 0, 0)
    yield Call(NR.msgctl, (queue.id, IPC_SET, content), 0, f"setting the size of {name} to {queue.size} bytes")
    for message in queue.messages:
        text = _TYPE.pack(message.type) + message.content
        words = f"putting a message of {len(message.content)} bytes into {name}"
        yield Call(NR.msgsnd, (queue.id, text, len(message.content), IPC_NOWAIT), 0, words)
    content = _STAT.pack(queue.key, uid, gid, 0, 0, rights, 0, 0, 0, 0, 0, queue.size, 0, 0)
    yield Call(NR.msgctl, (queue.id, IPC_SET, content), 0, f"setting owner and rights of {name}")


def enlarge(image: pb.Tree) -> Iterator[Call]:
    """Let the namespace's queues be as large as the image's, if that is more than the default."""
    largest = max((queue.size for queue in image.queues), default=0)
    if largest > DEFAULT_SIZE:
        text = b"%d" % largest
        yield Call(NR.open, (_MSGMNB, os.O_WRONLY | os.O_CLOEXEC), None, "opening msgmnb")
        yield Call(NR.write, (Result(0), text, len(text)), len(text), f"setting msgmnb to {largest} bytes")
        yield Call(NR.close, (Result(0),), 0, "closing msgmnb")

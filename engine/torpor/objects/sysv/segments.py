"""System V shared memory segments that a tree has attached; and which System V objects belong to a tree.

Kept: id, key, size, permissions, content, where each process has attached it, whether it is marked for removal. A tree
with segments is restored into an IPC namespace of its own, where their ids and keys are free. The old segments stay on
the host until somebody removes them. Semaphores are in `torpor.objects.sysv.semaphore_sets`, message queues in
`torpor.objects.sysv.message_queues`; they belong to the tree whose processes used them last.

Refused: a segment that other processes have attached too, that is attached only in part, or that is locked (SHM_LOCK);
one that the tree has created but not attached; semaphores and message queues that processes outside of the tree have
used too. If a process only knows an id, nothing of that can be seen from outside.

Documented in: sysvipc(7), shmctl(2), proc_sysvipc(5); /proc/sys/kernel/shm_next_id in
Documentation/admin-guide/sysctl/kernel.rst.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.procfs import page_up
from torpor.remote.batch import Batch, Call, Out, Replies, Result
from torpor.remote.freeze import describe_process
from torpor.remote.sys import try_syscall
from torpor.util.ranges import subtract

IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
GETPID, MSG_INFO, MSG_STAT_ANY, SEM_INFO, SEM_STAT_ANY = 11, 12, 13, 19, 20
IPC_CREAT, IPC_EXCL = 0o1000, 0o2000
RIGHTS = 0o777
_NAME = b"/SYSV"
_STAT = struct.Struct("<iIIIII24xQ3QiiQ16x")  # struct shmid64_ds (include/uapi/asm-generic/shmbuf.h)
_DESTROYED, _LOCKED = 0o1000, 0o2000
_LARGEST_STAT = 120
"""The size of a struct msqid64_ds in bytes; a struct semid64_ds is smaller."""
_AT_ONCE = 100
_OF_SETS, _OF_QUEUES = (NR.semop, NR.semtimedop), (NR.msgrcv, NR.msgsnd)
"""Calls in which a thread may wait for semaphores or queues; the first argument is the id."""


class Segment(NamedTuple):
    """The result of IPC_STAT for a segment."""

    id: int
    key: int
    uid: int
    gid: int
    mode: int
    size: int
    attached: int
    """The number of its mappings in all processes."""


def is_segment(mapping: procfs.Mapping) -> bool:
    """Whether a mapping is of a segment; then its inode number is the segment's id."""
    return mapping.shared and mapping.name.startswith(_NAME) and mapping.name.endswith(b" (deleted)")


@dataclass
class Found:
    """The semaphores and message queues that belong to a tree."""

    sets: list[int] = field(default_factory=list)
    queues: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    """Why something cannot be kept."""


def unsupported(pids: Sequence[int]) -> list[Reason]:
    """What of a tree in our IPC namespace cannot be kept. `pids` are its processes, zombies too, and the root first."""
    return find(pids).reasons if pids and not is_apart(pids[0]) else []


def find(pids: Sequence[int], waits: Iterable[tuple[int, int]] = ()) -> Found:
    """Find what a tree in our IPC namespace has used.

    Args:
        pids: its processes; also zombies, which may be the last that used an object.
        waits: the calls in which its threads wait, each with its first argument.
    """
    members, started = set(pids), cache(_started)
    found = Found()
    waited = set(waits)

    def ours(pid: int, moment: int) -> bool:
        """Whether a process of the tree did it, in its lifetime: PIDs are reused."""
        return pid in members and started(pid) <= moment + 1

    def note(number: int, what: str, calls: Iterable[int], uses: Iterable[tuple[int, int]], kept: list[int]) -> None:
        uses = list(uses)
        mine = [pid for pid, moment in uses if ours(pid, moment)]
        if mine or any((call, number) in waited for call in calls):
            kept.append(number)
            others = [pid for pid, moment in uses if pid > 0 and not ours(pid, moment) and started(pid) <= moment + 1]
            if others:
                why = f"{describe_process(others[0])}, outside of the tree, has used them too"
                found.reasons.append(_reason([*mine, *pids][0], f"it uses {what} {number}, and {why}"))

    for row in _rows("shm"):
        if row["nattch"] == 0 and ours(row["cpid"], row["ctime"]):
            why = f"it has made the System V segment {row['shmid']} and not attached it"
            found.reasons.append(_reason(row["cpid"], why))
    for row in _rows("msg"):
        uses = ((row["lspid"], row["stime"]), (row["lrpid"], row["rtime"]))
        note(row["msqid"], "messages of the System V message queue", _OF_QUEUES, uses, found.queues)
    for row in _rows("sem"):
        users = {try_syscall(NR.semctl, row["semid"], number, GETPID) for number in range(row["nsems"])}
        moment = row["otime"] or row["ctime"]
        note(row["semid"], "the System V semaphores", _OF_SETS, ((pid, moment) for pid in users), found.sets)
    return found


def find_all(ask: Callable[[Batch], Replies]) -> Found:
    """Find everything in a tree's own IPC namespace. `ask` lets a process of the tree make calls."""
    batch = Batch()
    last = batch.add(NR.semctl, 0, 0, SEM_INFO, Out(40)), batch.add(NR.msgctl, 0, MSG_INFO, Out(32))
    replies = ask(batch)
    sets, queues = (replies.result(entry) + 1 for entry in last)
    found = Found()
    for at in range(0, max(sets, queues), _AT_ONCE):
        batch, some = Batch(), range(at, at + _AT_ONCE)
        of_sets = [batch.add(NR.semctl, index, 0, SEM_STAT_ANY, Out(_LARGEST_STAT)) for index in some if index < sets]
        of_queues = [batch.add(NR.msgctl, index, MSG_STAT_ANY, Out(_LARGEST_STAT)) for index in some if index < queues]
        replies = ask(batch)
        for entries, kept in ((of_sets, found.sets), (of_queues, found.queues)):
            kept += [number for number in map(replies.result, entries) if number >= 0]
    return found


def _started(pid: int) -> float:
    """When a process started, in seconds of CLOCK_REALTIME, as in the times of System V objects."""
    try:
        ticks = procfs.stat(pid).start_time
    except (FileNotFoundError, ProcessLookupError):
        return float("inf")
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _reason(pid: int, why: str) -> Reason:
    return Reason(describe_process(pid), why)


def is_apart(pid: int) -> bool:
    """Whether a process is in another IPC namespace than we."""
    try:
        return os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    except (FileNotFoundError, ProcessLookupError):
        return True  # it ended, or the kernel has no System V objects


def _rows(kind: str) -> Iterator[dict[str, int]]:
    try:
        text = procfs.read(f"/proc/sysvipc/{kind}").decode()
    except FileNotFoundError:
        return
    heading, *lines = text.splitlines()
    names = heading.split()
    for line in lines:
        yield dict(zip(names, map(int, line.split()), strict=True))


def ask(batch: Batch, maps: Iterable[procfs.Mapping]) -> dict[int, int]:
    """Query the segments that a process maps. Returns the batch entries by segment id."""
    ids = {mapping.inode for mapping in maps if is_segment(mapping)}
    return {number: batch.add(NR.shmctl, number, IPC_STAT, Out(_STAT.size)) for number in sorted(ids)}


def answer(asked: Mapping[int, int], replies: Replies) -> tuple[list[Segment], list[str]]:
    """The segments, and what of them cannot be kept."""
    segments: list[Segment] = []
    reasons: list[str] = []
    for number, entry in asked.items():
        if replies.result(entry) < 0:
            reasons.append(
                f"the System V segment {number} tells it nothing of itself: {os.strerror(-replies.result(entry))}"
            )
            continue
        key, uid, gid, _, _, mode, size, *_, attached = _STAT.unpack(replies.output(entry, 2))
        segments.append(Segment(number, key, uid, gid, mode, size, attached))
    return segments, reasons


def unsupported_segment(segment: Segment, mappings: int, pieces: Mapping[int, int]) -> str:
    """Why a segment cannot be kept; empty if it can.

    Args:
        segment: the result of IPC_STAT.
        mappings: the number of its mappings in the tree.
        pieces: the parts of it that were read: sizes by offset.
    """
    name = f"the System V segment {segment.id}"
    if segment.attached != mappings:
        return f"{name} is attached by processes outside of the tree too"
    whole = [(0, page_up(segment.size))]
    if subtract(whole, sorted((at, at + size) for at, size in pieces.items())):
        return f"{name} is attached in part only, which is not kept"
    if segment.mode & _LOCKED:
        return f"{name} is locked in memory (SHM_LOCK), which is not kept"
    return ""


def describe(segment: Segment, out: pb.SharedMemory) -> None:
    """Write a segment to the image."""
    out.kind, out.size = pb.SharedMemory.SYSTEM_V, segment.size
    out.sysv_id, out.sysv_key, out.mode = segment.id, segment.key, segment.mode
    out.uid, out.gid = segment.uid, segment.gid


# Restore

_SHM_RDONLY, _SHM_EXEC = 0o10000, 0o100000
_READ, _WRITE, _EXECUTE = 1, 2, 4
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2


def segments(image: pb.Tree) -> list[pb.SharedMemory]:
    """The segments of an image."""
    return [shared for shared in image.shared if shared.kind == pb.SharedMemory.SYSTEM_V]


def choose_id(kind: str, number: int, name: str) -> Iterator[Call]:
    """Choose the id of the next object of a kind: the first calls of a table (CONFIG_CHECKPOINT_RESTORE)."""
    text = b"%d" % number
    path = f"/proc/sys/kernel/{kind}_next_id"
    yield Call(NR.open, (path.encode() + b"\0", os.O_WRONLY | os.O_CLOEXEC), None, f"opening {path}")
    yield Call(NR.write, (Result(0), text, len(text)), len(text), f"choosing the id of {name}")
    yield Call(NR.close, (Result(0),), 0, f"closing {path}")


def make(shared: pb.SharedMemory, address: int, filling: Iterable[Call], owner: bool) -> Iterator[Call]:
    """Make a segment. Init runs these calls, in a table of their own.

    Args:
        shared: the segment.
        address: where init may map it for a moment.
        filling: the calls that read its content to that address.
        owner: whether the image's user ids are set.
    """
    number, name = shared.sysv_id, f"System V segment {shared.sysv_id}"
    yield from choose_id("shm", number, name)
    rights = shared.mode & RIGHTS
    yield Call(
        NR.shmget, (shared.sysv_key, shared.size, IPC_CREAT | IPC_EXCL | rights | 0o600), number, f"making {name}"
    )
    yield Call(NR.shmat, (number, address, 0), address, f"attaching {name}")
    yield from filling
    yield Call(NR.shmdt, (address,), 0, f"detaching {name}")
    if owner or rights != rights | 0o600:
        uid, gid = (shared.uid, shared.gid) if owner else (os.geteuid(), os.getegid())
        content = _STAT.pack(shared.sysv_key, uid, gid, 0, 0, rights, 0, 0, 0, 0, 0, 0, 0)
        yield Call(NR.shmctl, (number, IPC_SET, content), 0, f"setting owner and rights of {name}")


def room(image: pb.Tree) -> int:
    """The bytes of free addresses that `make` and `attach` need."""
    ends = [vma.offset + vma.end - vma.start for process in image.processes for vma in _attached(process.memory, image)]
    return max([page_up(shared.size) for shared in segments(image)] + ends, default=0)


def _attached(space: pb.AddressSpace, image: pb.Tree) -> list[pb.Vma]:
    """A process's mappings of segments."""
    return [vma for vma in space.vmas if is_attached(vma, image)]


def attach(space: pb.AddressSpace, image: pb.Tree, spare: int) -> Iterator[Call]:
    """Map a process's segments.

    Each is attached at a spare address, and the process's mappings are made from there: they may be parts of it, may
    have been moved, or be longer than the segment (mremap(2)), between other mappings.

    Args:
        space: of the process.
        image: the tree.
        spare: an unused address with as many free bytes as `room` returns.
    """
    for (index, may_write, may_run), vmas in groupby(sorted(_attached(space, image), key=_rights), _rights):
        shared, mine = image.shared[index], list(vmas)
        name = f"System V segment {shared.sysv_id}"
        flags = (0 if may_write else _SHM_RDONLY) | (_SHM_EXEC if may_run else 0)
        yield Call(NR.shmat, (shared.sysv_id, spare, flags), spare, f"attaching {name}")
        size, needed = page_up(shared.size), max(vma.offset + vma.end - vma.start for vma in mine)
        if needed > size:
            yield Call(NR.mremap, (spare, size, needed, 0, 0), spare, f"mapping more than there is of {name}")
        for vma in mine:
            place = f"{vma.start:#x}-{vma.end:#x}"
            length, how = vma.end - vma.start, _MREMAP_MAYMOVE | _MREMAP_FIXED
            words = f"mapping {name} at {place}"
            yield Call(NR.mremap, (spare + vma.offset, 0, length, how, vma.start), vma.start, words)
            if vma.prot != _READ | (_WRITE if may_write else 0) | (_EXECUTE if may_run else 0):
                yield Call(NR.mprotect, (vma.start, length, vma.prot), 0, f"protecting {place}")
        yield Call(NR.munmap, (spare, max(size, needed)), 0, f"detaching {name}")


def _rights(vma: pb.Vma) -> tuple[int, bool, bool]:
    """The segment of a mapping, and whether it may be written and executed there."""
    return vma.shared, vma.may_write, bool(vma.prot & _EXECUTE)


def is_attached(vma: pb.Vma, image: pb.Tree) -> bool:
    """Whether a mapping of the image is of a segment."""
    return vma.kind == pb.Vma.SHARED and image.shared[vma.shared].kind == pb.SharedMemory.SYSTEM_V


def remove(image: pb.Tree) -> Iterator[Call]:
    """Mark segments for removal that were marked, when all processes have attached them."""
    for shared in segments(image):
        if shared.mode & _DESTROYED:
            words = f"marking System V segment {shared.sysv_id} for removal"
            yield Call(NR.shmctl, (shared.sysv_id, IPC_RMID, 0), 0, words)

"""System V shared memory: segments that a tree has attached.

Kept: id, key, size, rights, content, where each process has attached it, whether it is marked for removal. A tree with
segments is restored into an IPC namespace of its own, where their ids and keys are free. The old segments stay in the
host until somebody removes them.

Refused: a segment that others have attached too, that is attached in part only, or that is locked (SHM_LOCK); one that
the tree has made and not attached; semaphores and message queues that it was the last to use. Of an id that a process
only knows nothing can be seen from outside.

Documented in: sysvipc(7), shmctl(2), proc_sysvipc(5); /proc/sys/kernel/shm_next_id in
Documentation/admin-guide/sysctl/kernel.rst.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torpor import procfs
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.remote.batch import Batch, Call, Out, Replies, Result
from torpor.remote.freeze import describe_process
from torpor.remote.sys import try_syscall
from torpor.remote.x86_64 import NR

IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
GETPID, MSG_INFO, SEM_INFO = 11, 12, 19
_NAME = b"/SYSV"
_STAT = struct.Struct("<iIIIII24xQ3QiiQ16x")  # struct shmid64_ds (include/uapi/asm-generic/shmbuf.h)
_DESTROYED, _LOCKED, _RIGHTS = 0o1000, 0o2000, 0o777
_SEMINFO_SETS = slice(28, 32)  # struct seminfo: semusz, which SEM_INFO makes the number of sets
_MSGINFO_QUEUES = slice(0, 4)  # struct msginfo: msgpool, which MSG_INFO makes the number of queues


class Segment(NamedTuple):
    """What IPC_STAT says."""

    id: int
    key: int
    uid: int
    gid: int
    mode: int
    size: int
    attached: int
    """Mappings of it, in all processes."""


def is_segment(mapping: procfs.Mapping) -> bool:
    """Whether a mapping is of a segment; its inode number then is the segment's id."""
    return mapping.shared and mapping.name.startswith(_NAME) and mapping.name.endswith(b" (deleted)")


def refuse(pids: Sequence[int]) -> list[Reason]:
    """What of a tree cannot be kept that lives in the same IPC namespace as we; `pids` are its living processes."""
    if not pids or _is_apart(pids[0]):
        return []
    members = {pid: _started(pid) for pid in pids}

    def ours(pid: int, moment: int) -> bool:
        """Whether a process of the tree did it: PIDs are used again, and only what it did in its time is its own."""
        return pid in members and members[pid] <= moment + 1

    reasons: list[Reason] = []
    for row in _rows("shm"):
        if row["nattch"] == 0 and ours(row["cpid"], row["ctime"]):
            reasons.append(_reason(row["cpid"], f"it has made the System V segment {row['shmid']} and not attached it"))
    for row in _rows("msg"):
        uses = ((row["lspid"], row["stime"]), (row["lrpid"], row["rtime"]))
        if found := [pid for pid, moment in uses if ours(pid, moment)]:
            reasons.append(_reason(found[0], f"it uses the System V message queue {row['msqid']}, not kept yet"))
    for row in _rows("sem"):
        users = {try_syscall(NR.semctl, row["semid"], number, GETPID) for number in range(row["nsems"])}
        if used := [pid for pid in users if ours(pid, row["otime"] or row["ctime"])]:
            reasons.append(_reason(used[0], f"it uses the System V semaphores {row['semid']}, not kept yet"))
    return reasons


def _started(pid: int) -> float:
    """When a process began, in seconds as the System V objects tell them (CLOCK_REALTIME)."""
    try:
        ticks = procfs.stat(pid).start_time
    except (FileNotFoundError, ProcessLookupError):
        return float("inf")
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _reason(pid: int, why: str) -> Reason:
    return Reason(describe_process(pid), why)


def _is_apart(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    except (FileNotFoundError, ProcessLookupError):
        return True  # it ended, or the kernel has no System V objects at all


def _rows(kind: str) -> Iterator[dict[str, int]]:
    try:
        text = procfs.read(f"/proc/sysvipc/{kind}").decode()
    except FileNotFoundError:
        return
    heading, *lines = text.splitlines()
    names = heading.split()
    for line in lines:
        yield dict(zip(names, map(int, line.split()), strict=True))


@dataclass
class Questions:
    """The entries of a process's batch that tell of segments and the like."""

    apart: bool
    segments: dict[int, int]
    semaphores: int
    queues: int


def ask(batch: Batch, pid: int, maps: Iterable[procfs.Mapping]) -> Questions:
    """Ask for the segments that a process maps; in an IPC namespace of its own, for what else is there."""
    ids = {mapping.inode for mapping in maps if is_segment(mapping)}
    return Questions(
        apart=_is_apart(pid),
        segments={number: batch.add(NR.shmctl, number, IPC_STAT, Out(_STAT.size)) for number in sorted(ids)},
        semaphores=batch.add(NR.semctl, 0, 0, SEM_INFO, Out(40)),
        queues=batch.add(NR.msgctl, 0, MSG_INFO, Out(32)),
    )


def answer(asked: Questions, replies: Replies) -> tuple[list[Segment], list[str]]:
    """The segments, and what of the namespace cannot be kept."""
    segments: list[Segment] = []
    problems: list[str] = []
    for number, entry in asked.segments.items():
        if replies.result(entry) < 0:
            problems.append(
                f"the System V segment {number} tells it nothing of itself: {os.strerror(-replies.result(entry))}"
            )
            continue
        key, uid, gid, _, _, mode, size, *_, attached = _STAT.unpack(replies.output(entry, 2))
        segments.append(Segment(number, key, uid, gid, mode, size, attached))
    if asked.apart:
        if any(replies.output(asked.semaphores, 3)[_SEMINFO_SETS]):
            problems.append("its IPC namespace has System V semaphores, which are not kept yet")
        if any(replies.output(asked.queues, 2)[_MSGINFO_QUEUES]):
            problems.append("its IPC namespace has System V message queues, which are not kept yet")
    return segments, problems


def problem(segment: Segment, mappings: int, pieces: Mapping[int, int]) -> str:
    """Why a segment cannot be kept, or nothing.

    Args:
        segment: as it was told.
        mappings: how many the tree has of it.
        pieces: what of it was read: sizes by offset.
    """
    name = f"the System V segment {segment.id}"
    if segment.attached != mappings:
        return f"{name} is attached by processes outside of the tree too"
    whole = [(0, -(-segment.size // PAGE) * PAGE)]
    if memory.subtract(whole, sorted((at, at + size) for at, size in pieces.items())):
        return f"{name} is attached in part only, which is not kept"
    if segment.mode & _LOCKED:
        return f"{name} is locked in memory (SHM_LOCK), which is not kept"
    return ""


def describe(segment: Segment, out: pb.SharedMemory) -> None:
    """Fill a segment's place in the image."""
    out.kind, out.size = pb.SharedMemory.SYSTEM_V, segment.size
    out.sysv_id, out.sysv_key, out.mode = segment.id, segment.key, segment.mode
    out.uid, out.gid = segment.uid, segment.gid


# Restore

_IPC_CREAT, _IPC_EXCL = 0o1000, 0o2000
_SHM_RDONLY, _SHM_EXEC = 0o10000, 0o100000
_NEXT_ID = b"/proc/sys/kernel/shm_next_id\0"
_READ, _WRITE, _EXECUTE = 1, 2, 4


def segments(image: pb.Tree) -> list[pb.SharedMemory]:
    """Those of an image."""
    return [shared for shared in image.shared if shared.kind == pb.SharedMemory.SYSTEM_V]


def make(shared: pb.SharedMemory, address: int, filling: Iterable[Call], owner: bool) -> Iterator[Call]:
    """Make a segment, by init, in a table of its own.

    Args:
        shared: the segment.
        address: where init may map it for a moment.
        filling: the calls that read its content to there.
        owner: whether the image's user ids are set.
    """
    number, name = shared.sysv_id, f"System V segment {shared.sysv_id}"
    text = b"%d" % number
    yield Call(NR.open, (_NEXT_ID, os.O_WRONLY | os.O_CLOEXEC), None, "opening shm_next_id")
    yield Call(NR.write, (Result(0), text, len(text)), len(text), f"choosing the id of {name}")
    yield Call(NR.close, (Result(0),), 0, "closing shm_next_id")
    rights = shared.mode & _RIGHTS
    yield Call(
        NR.shmget, (shared.sysv_key, shared.size, _IPC_CREAT | _IPC_EXCL | rights | 0o600), number, f"making {name}"
    )
    yield Call(NR.shmat, (number, address, 0), address, f"attaching {name}")
    yield from filling
    yield Call(NR.shmdt, (address,), 0, f"detaching {name}")
    if owner or rights != rights | 0o600:
        uid, gid = (shared.uid, shared.gid) if owner else (os.geteuid(), os.getegid())
        content = _STAT.pack(shared.sysv_key, uid, gid, 0, 0, rights, 0, 0, 0, 0, 0, 0, 0)
        yield Call(NR.shmctl, (number, IPC_SET, content), 0, f"setting owner and rights of {name}")


def attach(space: pb.AddressSpace, image: pb.Tree) -> Iterator[Call]:
    """Attach a process's segments. Each is attached as a whole; what is not mapped of it now is unmapped again."""
    mine = [vma for vma in space.vmas if is_attached(vma, image)]
    for (index, base), parts in groupby(mine, lambda vma: (vma.shared, vma.start - vma.offset)):
        shared, vmas = image.shared[index], list(parts)
        writable = any(vma.may_write for vma in vmas)
        flags = (0 if writable else _SHM_RDONLY) | (_SHM_EXEC if any(vma.prot & _EXECUTE for vma in vmas) else 0)
        words = f"attaching System V segment {shared.sysv_id} at {base:#x}"
        yield Call(NR.shmat, (shared.sysv_id, base, flags), base, words)
        whole = [(base, base + -(-shared.size // PAGE) * PAGE)]
        for start, end in memory.subtract(whole, [(vma.start, vma.end) for vma in vmas]):
            yield Call(NR.munmap, (start, end - start), 0, f"unmapping {start:#x}-{end:#x} again")
        for vma in vmas:
            if vma.prot != _READ | (_WRITE if writable else 0):
                words = f"protecting {vma.start:#x}-{vma.end:#x}"
                yield Call(NR.mprotect, (vma.start, vma.end - vma.start, vma.prot), 0, words)


def is_attached(vma: pb.Vma, image: pb.Tree) -> bool:
    """Whether a mapping of the image is one of a segment."""
    return vma.kind == pb.Vma.SHARED and image.shared[vma.shared].kind == pb.SharedMemory.SYSTEM_V


def remove(image: pb.Tree) -> Iterator[Call]:
    """Mark segments for removal that were marked, when all have attached them."""
    for shared in segments(image):
        if shared.mode & _DESTROYED:
            words = f"marking System V segment {shared.sysv_id} for removal"
            yield Call(NR.shmctl, (shared.sysv_id, IPC_RMID, 0), 0, words)

"""System V shared memory segments that a tree has attached.

Kept: id, key, size, permissions, content, where each process has attached it, whether it is marked for removal. A tree
with segments is restored into an IPC namespace of its own, where their ids and keys are free. The old segments stay on
the host until somebody removes them.

Refused: a segment that other processes have attached too, that is attached only in part, or that is locked (SHM_LOCK);
one that the tree has created but not attached.

Documented in: sysvipc(7), shmctl(2), proc_sysvipc(5); /proc/sys/kernel/shm_next_id in
Documentation/admin-guide/sysctl/kernel.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import EnteredTree, Stage, Step
from torpor.objects.sysv.belonging import (
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    RIGHTS,
    Found,
    SystemV,
    Users,
    create,
    owner_of,
    owner_of_row,
    reason,
    rows,
)
from torpor.procfs import page_up
from torpor.remote.batch import Ask, Batch, Call, Out, Replies
from torpor.util.ranges import subtract

_NAME = b"/SYSV"
_STAT = struct.Struct("<iIIIII24xQ3QiiQ16x")  # struct shmid64_ds (include/uapi/asm-generic/shmbuf.h)
_DESTROYED, _LOCKED = 0o1000, 0o2000


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


class Segments(SystemV[Found]):
    """What is kept of segments besides memory: which ones a tree has made but not attached, and which will be removed.

    The rest belongs to the memory of the tree: `torpor.objects.memory.shared_memory` reads and describes them, and the
    plan has init make them with their content.
    """

    def find(self, users: Users) -> Found:
        """Those that are made and not attached: nothing shows their content."""
        why = "it has made the System V segment {} and not attached it"
        found = Found()
        for row in rows("shm"):
            number, made = row["shmid"], (row["cpid"], row["ctime"], owner_of_row(row))
            pid = made[0]
            if row["nattch"] == 0 and users.did(*made):
                found.reasons.append(reason(pid, why.format(number)))
            elif row["nattch"] == 0 and users.may_have(*made):
                found.reasons.append(users.unclear(pid, f"the System V segment {number} was"))
        return found

    def find_all(self, ask: Ask) -> Found:
        """None: nobody outside of the tree has made any in its namespace."""
        return Found()

    def grab(self, tree: EnteredTree) -> Found:
        """Look whether there is one that nobody has attached."""
        return self.found(tree)

    def describe(self, grabbed: Found, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Nothing: the tree's shared memory has described them."""

    def needs_ipc_namespace(self, image: pb.Tree) -> bool:
        """Their ids and keys are free there."""
        return bool(segments(image))

    def calls(self, process: pb.Process, image: pb.Tree, host: None, *, owner: bool) -> Iterator[Step]:
        """The first process marks for removal what was marked, when all have attached it."""
        if process.pid == image.processes[0].pid:
            yield from (Step(Stage.ALL_THREADS, call) for call in remove(image))


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
            reasons.append(f"it may not query the System V segment {number}: {os.strerror(-replies.result(entry))}")
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


def make(shared: pb.SharedMemory, address: int, filling: Iterable[Call], owner: bool) -> Iterator[Call]:
    """Make a segment. Init runs these calls, in a table of their own.

    Args:
        shared: the segment.
        address: where init may map it for a moment.
        filling: the calls that read its content to that address.
        owner: whether the image's user ids are set.
    """
    number, name = shared.sysv_id, f"System V segment {shared.sysv_id}"
    rights = shared.mode & RIGHTS
    yield from create("shm", number, NR.shmget, (shared.sysv_key, shared.size), rights, name)
    yield Call(NR.shmat, (number, address, 0), address, f"attaching {name}")
    yield from filling
    yield Call(NR.shmdt, (address,), 0, f"detaching {name}")
    if owner or rights != rights | 0o600:
        uid, gid = owner_of(shared.uid, shared.gid, owner=owner)
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
            yield Call(NR.mremap, (spare, size, needed, 0, 0), spare, f"mapping beyond the end of {name}")
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

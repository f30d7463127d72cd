"""Which System V segments cannot be kept, and the calls by which one is made, attached and marked for removal."""

from __future__ import annotations

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.sysv import segments
from torpor.objects.sysv.belonging import IPC_SET
from torpor.procfs import PAGE
from torpor.remote.batch import Call

MINE = segments.Segment(id=3, key=7, uid=0, gid=0, mode=0o600, size=2 * PAGE - 1, attached=2)


@pytest.mark.parametrize(
    ("segment", "pieces", "why"),
    [
        (MINE, {0: 2 * PAGE}, ""),
        (MINE, {PAGE: PAGE, 0: PAGE}, ""),
        (MINE._replace(attached=3), {0: 2 * PAGE}, "outside of the tree"),
        (MINE, {0: PAGE}, "in part only"),
        (MINE._replace(mode=0o2600), {0: 2 * PAGE}, "SHM_LOCK"),
    ],
)
def test_what_cannot_be_kept(segment: segments.Segment, pieces: dict[int, int], why: str) -> None:
    told = segments.unsupported_segment(segment, 2, pieces)
    assert why in told and bool(told) == bool(why)


def test_a_segment_is_filled_between_two_calls_and_then_gets_its_rights() -> None:
    shared = pb.SharedMemory(kind=pb.SharedMemory.SYSTEM_V, sysv_id=3, size=PAGE, mode=0o400)
    *_, attached, filled, detached, owned = segments.make(shared, 0x1000, [Call(NR.pread64, (), 0, "it")], owner=False)
    assert [one.nr for one in (attached, filled, detached)] == [NR.shmat, NR.pread64, NR.shmdt]
    assert owned.nr == NR.shmctl and owned.args[1] == IPC_SET
    shared.mode = 0o600
    *_, last = segments.make(shared, 0x1000, [], owner=False)
    assert last.nr == NR.shmdt, "it has its rights already"


def test_parts_of_a_segment_are_mapped_where_they_were() -> None:
    image = pb.Tree(shared=[pb.SharedMemory(kind=pb.SharedMemory.SYSTEM_V, sysv_id=3, size=2 * PAGE)])
    process = image.processes.add()
    start = 0x7000_0000
    process.memory.vmas.add(
        start=start, end=start + PAGE, offset=PAGE, kind=pb.Vma.SHARED, shared=0, may_write=True, prot=1
    )
    spare = 0x10_0000
    calls = list(segments.attach(process.memory, image, spare))
    assert [call.nr for call in calls] == [NR.shmat, NR.mremap, NR.mprotect, NR.munmap]
    assert calls[1].args[0] == spare + PAGE and calls[1].args[4] == start == calls[1].expect
    assert calls[2].args == (start, PAGE, 1), "it was mapped read-only, and may be made writable again"
    assert segments.room(image) == 2 * PAGE


def test_what_was_marked_for_removal_is_marked_again() -> None:
    image = pb.Tree()
    for number, mode in ((3, 0o600), (4, 0o1600)):
        image.shared.add(kind=pb.SharedMemory.SYSTEM_V, sysv_id=number, mode=mode)
    assert [call.args[0] for call in segments.remove(image)] == [4]

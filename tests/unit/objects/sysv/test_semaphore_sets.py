"""The calls by which System V semaphores and what is to be undone are made, and what of an image cannot be made."""

from __future__ import annotations

import struct

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.sysv import semaphore_sets
from torpor.objects.sysv.belonging import IPC_SET


def test_semaphores_get_the_values_from_before_what_is_undone() -> None:
    one = pb.SemaphoreSet(id=3, key=7, mode=0o600, values=[5, 1])
    one.undo.add(pid=40, number=1, value=2)
    one.undo.add(pid=41, number=1, value=4)
    (values,) = (
        call.args[3]
        for call in semaphore_sets.make(one, owner=False)
        if call.nr == NR.semctl and call.args[2] != IPC_SET
    )
    assert values == struct.pack("<2H", 5, 1 + 2 + 4)
    (mine,) = semaphore_sets.undo(41, pb.Tree(semaphores=[one]))
    assert mine.nr == NR.semop and mine.args[0] == 3
    assert mine.args[1] == struct.pack("<Hhh", 1, -4, semaphore_sets.SEM_UNDO | semaphore_sets.IPC_NOWAIT)


@pytest.mark.parametrize(
    ("values", "undo", "why"),
    [
        ([1], [(0, 3)], None),
        ([], [], "an invalid System V set"),
        ([40_000], [], "an invalid System V set"),
        ([1], [(1, 1)], "an invalid SEM_UNDO"),
        ([1], [(0, 40_000)], "an invalid SEM_UNDO"),
        ([1], [(0, 30_000), (0, 30_000)], "too large"),
        ([1], [(0, -2)], "too large"),
    ],
)
def test_a_set_that_cannot_be(values: list[int], undo: list[tuple[int, int]], why: str | None) -> None:
    one = pb.SemaphoreSet(values=values)
    for number, value in undo:
        one.undo.add(pid=1, number=number, value=value)
    told = list(semaphore_sets.validate_form(one))
    assert len(told) == (why is not None)
    assert why is None or why in told[0]

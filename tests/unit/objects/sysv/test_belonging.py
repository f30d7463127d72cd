"""Which System V objects belong to a tree, by who has used them and when."""

from __future__ import annotations

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage
from torpor.objects.registry import TREE_PARTS
from torpor.objects.sysv import belonging
from torpor.objects.sysv.belonging import Found, Users
from torpor.objects.sysv.message_queues import MessageQueues
from torpor.objects.sysv.semaphore_sets import SemaphoreSets

MEMBER, OTHER, ENDED = 2**22 + 1, 2**22 + 2, 2**22 + 3
"""No process has these PIDs."""
STARTED = {MEMBER: 100.0, OTHER: 50.0, ENDED: float("inf")}
USES = {
    "by the tree": ([(MEMBER, 200)], (), True, False),
    "by others": ([(OTHER, 200)], (), False, False),
    "by both": ([(MEMBER, 200), (OTHER, 200)], (), True, True),
    "by the tree and one that has ended": ([(MEMBER, 200), (ENDED, 200)], (), True, False),
    "as soon as it began, by a clock that lags": ([(MEMBER, 98)], (), True, False),
    "by one that had the PID before, and a thread waits": ([(MEMBER, 90)], (NR.semop,), True, False),
    "by nobody": ([(0, 0)], (), False, False),
    "in which a thread waits": ([(0, 0)], (NR.semop,), True, False),
    "in which a thread waits that others use": ([(OTHER, 200)], (NR.semop,), True, True),
}


@pytest.fixture(autouse=True)
def _starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belonging, "_started", STARTED.__getitem__)


@pytest.mark.parametrize("use", USES)
def test_what_was_used_last_by_the_tree_belongs_to_it(use: str) -> None:
    uses, calls, belongs, shared = USES[use]
    found = Found()
    Users([MEMBER], [(NR.semop, 7)]).note(found, 7, "the System V semaphores", calls, uses)
    assert found.ids == ([7] if belongs else [])
    assert ["outside of the tree, has used them too" in reason.why for reason in found.reasons] == [True] * shared


def test_what_was_used_before_its_process_began_is_neither_kept_nor_left_out() -> None:
    """The clock was set since then, or another process had the PID."""
    found = Found()
    Users([MEMBER]).note(found, 7, "the System V semaphores", (), [(MEMBER, 90), (MEMBER, 90), (OTHER, 10)])
    assert found.ids == []
    (reason,) = found.reasons
    assert "semaphores 7 were used by a process with its PID, before it began" in reason.why
    assert "ipcrm" in reason.why


def test_a_tree_with_objects_needs_a_namespace_and_init_makes_them() -> None:
    image = pb.Tree()
    process = image.processes.add(pid=10)
    assert not any(part.needs_ipc_namespace(image) for part in TREE_PARTS)
    image.semaphores.add(id=3, key=5, mode=0o600, values=[1, 2]).undo.add(pid=10, number=1, value=1)
    image.queues.add(id=4, key=6, mode=0o600, size=100).messages.add(type=1, content=b"hello")
    sets, queues = SemaphoreSets(), MessageQueues()
    assert sets.needs_ipc_namespace(image)
    assert queues.needs_ipc_namespace(image)
    ((*_, made, _, _),) = sets.by_init(image, None, owner=False)
    assert (made.nr, made.expect) == (NR.semget, 3)
    (undone,) = sets.calls(process, image, None, owner=False)
    assert (undone.stage, undone.call.nr) == (Stage.ALL_THREADS, NR.semop)
    (calls,) = queues.by_init(image, None, owner=False)
    assert [call.nr for call in calls if call.nr in (NR.msgget, NR.msgsnd)] == [NR.msgget, NR.msgsnd]
    assert not [*sets.validate_form(image), *queues.validate_form(image)]
    image.queues[0].messages[0].type = 0
    (why,) = queues.validate_form(image)
    assert "queue 4" in why

"""Which System V objects belong to a tree, by who has used them and when."""

from __future__ import annotations

import pytest

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage
from torpor.objects.registry import TREE_PARTS
from torpor.objects.sysv import belonging, semaphore_sets
from torpor.objects.sysv.belonging import Found, Owner, Users
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
EVERYBODYS = Owner(uid=1, gid=1, cuid=1, cgid=1, mode=0o666)


@pytest.fixture(autouse=True)
def _starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belonging, "_started", STARTED.__getitem__)


@pytest.mark.parametrize("use", USES)
def test_what_was_used_last_by_the_tree_belongs_to_it(use: str) -> None:
    uses, calls, belongs, shared = USES[use]
    found = Found()
    Users([MEMBER], [(NR.semop, 7)]).note(found, 7, "the System V semaphores", calls, uses, EVERYBODYS)
    assert found.ids == ([7] if belongs else [])
    assert ["outside of the tree, has used them too" in reason.why for reason in found.reasons] == [True] * shared


def test_what_was_used_before_its_process_began_is_neither_kept_nor_left_out() -> None:
    """The clock was set since then, or another process had the PID."""
    found = Found()
    uses = [(MEMBER, 90), (MEMBER, 90), (OTHER, 10)]
    Users([MEMBER]).note(found, 7, "the System V semaphores", (), uses, EVERYBODYS)
    assert found.ids == []
    (reason,) = found.reasons
    assert "semaphores 7 were used by a process with its PID, before it began" in reason.why
    assert "ipcrm" in reason.why


_STATUS = b"Uid:\t20 20 20 20\nGid:\t30 30 30 30\nGroups:\t40 41 \nCapPrm:\t%016x\n"


@pytest.mark.parametrize(
    ("owner", "capabilities", "may"),
    [
        (Owner(50, 60, 50, 60, 0o600), 0, False),
        (Owner(50, 60, 50, 60, 0o660), 0, False),
        (Owner(20, 60, 50, 60, 0), 0, True),  # its owner may set its rights
        (Owner(50, 60, 20, 60, 0), 0, True),  # and so may who made it
        (Owner(50, 30, 50, 60, 0o640), 0, True),
        (Owner(50, 60, 50, 41, 0o620), 0, True),
        (Owner(50, 30, 50, 30, 0o600), 0, False),
        (Owner(50, 60, 50, 60, 0o604), 0, True),
        (Owner(50, 60, 50, 60, 0), 1 << 15, True),  # CAP_IPC_OWNER
        (Owner(50, 60, 50, 60, 0), 1 << 12, False),  # CAP_NET_ADMIN
    ],
)
def test_what_a_process_may_not_use_is_not_its_own(
    owner: Owner, capabilities: int, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user is another process, whose PID this one got later, of whichever time the use is."""
    monkeypatch.setattr(procfs, "threads", lambda pid: [pid])
    monkeypatch.setattr(procfs, "read", lambda path: _STATUS % capabilities)
    for moment, kept, refused in ((200, may, False), (90, False, may)):
        found = Found()
        Users([MEMBER]).note(found, 7, "the System V semaphores", (), [(MEMBER, moment)], owner)
        assert (found.ids == [7], bool(found.reasons)) == (kept, refused)
    found = Found()
    Users([MEMBER], [(NR.semop, 7)]).note(found, 7, "the System V semaphores", [NR.semop], [(OTHER, 200)], owner)
    assert bool(found.reasons) == may, "nor does it make an object of the tree another's too"


def test_rights_are_read_as_the_kernel_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b"key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime\n0 9 640 0 0 0 0 1 2 3 4 0 0 5\n"
    )
    monkeypatch.setattr(procfs, "read", lambda path: text)
    (row,) = belonging.rows("msg")
    assert belonging.owner_of_row(row) == Owner(uid=1, gid=2, cuid=3, cgid=4, mode=0o640)
    assert row["msqid"] == 9


def test_semaphores_whose_values_were_set_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """SETVAL notes ctime, and otime is of an earlier process with the PID, or of nobody."""
    row = {"semid": 7, "nsems": 1, "otime": 90, "ctime": 200, **dict.fromkeys(("uid", "gid", "cuid", "cgid"), 1)}
    monkeypatch.setattr(semaphore_sets, "rows", lambda kind: [{**row, "perms": 0o666}])
    monkeypatch.setattr(semaphore_sets, "try_syscall", lambda *arguments: MEMBER)
    found = SemaphoreSets().find(Users([MEMBER]))
    assert (found.ids, found.reasons) == ([7], [])


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

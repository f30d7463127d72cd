"""The walk to PIDs: the order of births, and letting numbers go by, which leaves nothing behind."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leaks import descendants
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.fds.pidfd import NOBODY
from torpor.objects.process import birth_order, threads
from torpor.objects.process.birth_order import Member
from torpor.remote import pid_allocation
from torpor.remote.batch import Call
from torpor.remote.children import forked
from torpor.remote.pid_allocation import Numbers
from torpor.restorer import walk
from torpor.restorer.plan import ProcessPlan

GIVEN = Numbers(300, 1000)


def tree(
    *, pid: int, sid: int | None = None, early: list[Member] | None = None, late: list[Member] | None = None
) -> Member:
    early = early or []
    member = Member(pid, sid, None, children=[*early, *(late or [])], early=early)
    for child in member.children:
        child.parent = member
    return member


def order(top: Member, threads: dict[int, list[int]], last: int) -> list[int]:
    route, found = walk.Route(top, threads), []
    while route:
        last, _ = route.next(last)
        route.born(last)
        found.append(last)
    return found


@pytest.mark.parametrize(("last", "target", "left"), [(400, 401, 0), (400, 500, 99), (999, 300, 0), (500, 500, 699)])
def test_how_many_come_before(last: int, target: int, left: int) -> None:
    assert GIVEN.left(last, target) == left


def test_a_tree_as_it_grew_takes_one_round() -> None:
    """Threads and children in the order of their numbers, whoever bears them."""
    top = tree(pid=-1, late=[tree(pid=500, late=[tree(pid=503, late=[tree(pid=507)]), tree(pid=505)])])
    threads = {500: [501, 502, 506], 503: [504]}
    assert order(top, threads, 400) == [500, 501, 502, 503, 504, 505, 506, 507]
    assert walk.length(top, threads, GIVEN, 400) == 107
    assert walk.length(top, threads, GIVEN, 600) == 700 - (600 - 507)


def test_what_must_wait_is_met_in_the_next_round() -> None:
    """A child is born after its parent, and on its side of the parent's setsid()."""
    late, early = tree(pid=401), tree(pid=402)
    top = tree(pid=-1, late=[tree(pid=500, sid=500, early=[early], late=[late])])
    assert order(top, {}, 350) == [500, 402, 401]
    assert walk.length(top, {}, GIVEN, 350) == 150 + (700 - 98) + (700 - 1)


def test_stand_ins_of_any_number_cost_no_round() -> None:
    """Those that hold a group for a moment, bear a daemon, or are nobody's PID come after whoever bears them."""
    image = pb.Tree()
    for pid, ppid, pgid in ((400, 1, 400), (401, 400, 400), (402, 400, 401), (405, 0, 400)):
        image.processes.add(pid=pid, ppid=ppid, sid=400, pgid=pgid).threads.add(tid=pid)
    image.descriptions.add().pidfd.pid = NOBODY
    top = birth_order.arrange(image, -1, is_taken=lambda pid: pid == 403)
    tids = {400: [406]}
    assert not {403, 406} & {member.pid for member in top.walk()}
    assert walk.length(top, tids, GIVEN, 350) < GIVEN.end - GIVEN.first


def test_stand_ins_take_numbers_below_where_there_are_none_above() -> None:
    image = pb.Tree()
    for pid, ppid, pgid in ((998, 1, 998), (999, 998, 998), (997, 998, 999)):
        image.processes.add(pid=pid, ppid=ppid, sid=998, pgid=pgid).threads.add(tid=pid)
    top = birth_order.arrange(image, -1, is_taken=lambda pid: pid >= GIVEN.end or pid == 996)
    assert {member.pid for member in top.walk()} == {-1, 995, 997, 998, 999}


def test_a_thread_has_what_its_process_does_first() -> None:
    """Keyrings are inherited: whichever comes first, and nothing is done twice or before its time."""
    image = pb.Process(pid=500)
    for tid in (500, 499, 510):
        image.threads.add(tid=tid)
    plan = ProcessPlan(tree(pid=500, sid=500, early=[tree(pid=501)], late=[tree(pid=502)]))
    plan.member.image = image
    keys, session = Call(NR.keyctl, (1, 0), None, "keys"), Call(NR.setsid, (), 500, "session")
    births = [threads.clone(0, 17, pid, f"process {pid}") for pid in (501, 502)]
    plan.birth = [keys, births[0], session, births[1]]
    plan.clones = [threads.birth(thread) for thread in image.threads[1:]]
    births_of = walk.Births(plan)
    assert births_of.due(499) == [keys]
    assert births_of.due(510) == []
    assert births_of.due(501) == []
    assert births_of.due(502) == [session]
    assert births_of.due(None) == []


@given(st.data())
def test_every_order_is_one_of_births(data: st.DataObject) -> None:
    pids = data.draw(st.lists(st.integers(300, 999), min_size=1, max_size=12, unique=True))
    members = [tree(pid=-1)]
    for pid in pids:
        parent = data.draw(st.sampled_from(members))
        child = tree(pid=pid)
        child.parent = parent
        parent.children.append(child)
        if data.draw(st.booleans()):
            parent.early.append(child)
        members.append(child)
    threads = {members[1].pid: [pid for pid in range(300, 310) if pid not in pids]}
    found = order(members[0], threads, data.draw(st.integers(0, 999)))
    place = {pid: at for at, pid in enumerate(found)}
    assert sorted(found) == sorted([*pids, *threads[members[1].pid]])
    for member in members[1:]:
        assert member.parent
        assert place[member.pid] > place.get(member.parent.pid, -1)
        early = {child.pid for child in member.early}
        for child in member.children:
            assert child.pid in early or all(place[child.pid] > place[one] for one in early)


def test_groups_of_another_are_as_inits_own() -> None:
    image = pb.Tree()
    image.processes.add(pid=500, ppid=400, pgid=450, sid=350).threads.add(tid=500)
    assert [member.pid for member in birth_order.arrange(image, -1).walk()] == [-1, 350, 400, 450, 500]
    assert [member.pid for member in birth_order.arrange(image, -1, frozenset({350, 450})).walk()] == [-1, 400, 500]


def test_numbers_go_by() -> None:
    """What walks is gone when it is told, and no more is left before the target than was asked."""
    children = descendants(os.getpid())  # the test run's own
    here, pace = pid_allocation.here(), pid_allocation.pace()
    assert pace.per_second > 0
    begin = pid_allocation.last()
    target = here.first + (begin + 2000 - here.first) % (here.end - here.first)
    told = list(pid_allocation.walk(here, target, pace))
    assert told
    assert told[0] <= 2000
    left = here.left(pid_allocation.last(), target)
    assert left <= pace.near or left > here.end - here.first - 2000, "it is near, or others have gone beyond"
    assert not descendants(os.getpid()) - children


def test_who_may_have_no_more_processes_is_told() -> None:
    """RLIMIT_NPROC is respected: root's child becomes a user who has none left."""

    def limited() -> None:
        if not os.geteuid():
            os.setgid(65534)
            os.setuid(65534)
        _no_more_processes()

    _, status = os.waitpid(forked(limited), 0)
    assert status == 0


def _no_more_processes() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    with pytest.raises(BlockingIOError):
        pid_allocation.pace()


def test_a_group_without_its_leader_has_its_number() -> None:
    """kill(2) finds it, /proc does not show it."""
    reader, writer = os.pipe()

    def wait() -> None:
        os.close(writer)
        os.read(reader, 1)

    def lead() -> None:
        os.setpgid(0, 0)
        forked(wait)

    leader = forked(lead)
    os.waitpid(leader, 0)
    try:
        assert not os.path.exists(f"/proc/{leader}")
        assert pid_allocation.is_taken(leader)
    finally:
        os.close(writer)
        os.close(reader)
        with suppress(ProcessLookupError):
            os.killpg(leader, 9)

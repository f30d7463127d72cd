"""Births in the right order: every tree that processes can make themselves is made again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.errors import RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects.process import birth_order

OUTER_SESSION, PARENT, INIT = 50, 60, 1


@dataclass
class Living:
    """A process of the simulated kernel."""

    pid: int
    parent: int
    sid: int
    pgid: int
    children: list[int] = field(default_factory=list)


class Kernel:
    """fork, setsid, setpgid and exit as the kernel does them, for processes of a made-up tree."""

    def __init__(self, sid: int, pgid: int) -> None:
        self.table = {100: Living(100, PARENT, sid, pgid)}
        self.subreapers: set[int] = set()
        self.zombies: set[int] = set()
        self.daemons: list[int] = []
        """Those that fell to init."""

    def exit(self, pid: int, *, reaped: bool) -> None:
        """Its children fall to the nearest subreaper above it; to init, who reaps, if there is none in the tree."""
        above = self.table[pid].parent
        while above in self.table and above not in self.subreapers:
            above = self.table[above].parent
        for child in self.table[pid].children:
            if above in self.table:
                self.table[child].parent = above
                self.table[above].children.append(child)
            elif child in self.zombies:
                del self.table[child]
            else:
                self.table[child].parent = INIT
                self.daemons.append(child)
        self.table[pid].children = []
        self.subreapers.discard(pid)
        self.zombies.add(pid)
        if pid in self.daemons:
            self.daemons.remove(pid)
            del self.table[pid]
        elif reaped:
            self.table[self.table[pid].parent].children.remove(pid)
            del self.table[pid]

    def fork(self, pid: int, child: int) -> None:
        parent = self.table[pid]
        parent.children.append(child)
        self.table[child] = Living(child, pid, parent.sid, parent.pgid)

    def setsid(self, pid: int) -> None:
        if all(one.pgid != pid for one in self.table.values()):
            self.table[pid].sid = self.table[pid].pgid = pid

    def setpgid(self, pid: int, group: int) -> None:
        me = self.table[pid]
        exists = any(one.pgid == group and one.sid == me.sid for one in self.table.values())
        if me.sid != pid and (group == pid or exists):
            me.pgid = group


actions = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "fork",
                "fork",
                "fork",
                "setsid",
                "setpgid",
                "join",
                "adopt",
                "adopt",
                "adopt no more",
                "exit",
                "exit",
                "zombie",
            ]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    max_size=40,
)


def image_of(kernel: Kernel) -> pb.Tree:
    image = pb.Tree()
    waiting = [100, *kernel.daemons]
    while waiting:
        one = kernel.table[waiting.pop(0)]
        waiting += one.children
        adopts = one.pid in kernel.subreapers
        parent = 0 if one.parent == INIT else one.parent
        process = image.processes.add(pid=one.pid, ppid=parent, sid=one.sid, pgid=one.pgid, child_subreaper=adopts)
        process.threads.add(tid=one.pid)
    return image


def born(top: birth_order.Member) -> dict[int, Living]:
    """What becomes of a family whose members do as they are planned to."""
    found: dict[int, Living] = {}

    def live(member: birth_order.Member, parent: int, sid: int, pgid: int) -> None:
        me = found[member.pid] = Living(member.pid, parent, sid, pgid)
        for child in member.early:
            live(child, member.pid, me.sid, me.pgid)
        if member.leads_session:
            me.sid = me.pgid = member.pid
        for child in member.births[len(member.early) :]:
            if child is not member.holder:
                live(child, member.pid, me.sid, me.pgid)
        if member.starts_group and not member.leads_session:
            me.pgid = member.pid
        if member.holder:
            live(member.holder, member.pid, me.sid, me.pgid)

    def join(member: birth_order.Member) -> None:
        if member.pgid and member.pgid != member.pid:
            there = [one for one in found.values() if one.pgid == member.pgid]
            assert there, f"{member.pid} joins the group {member.pgid}, which is not there"
            assert there[0].sid == found[member.pid].sid, "a group of another session is joined"
            found[member.pid].pgid = member.pgid

    live(top, 0, 0, 0)
    for member in [member for member in top.walk() if member.adopter]:
        assert member.adopter
        above = found[member.pid].parent
        while above != member.adopter.pid:
            above = found[above].parent
        for one in found.values():
            if one.parent == member.pid:
                one.parent = above
        del found[member.pid]
    for member in top.walk():
        if member.pid in found:
            join(member)
    for member in [member for member in top.walk() if member.only_group and not member.adopter]:
        del found[member.pid]
    return found


@given(actions, st.sampled_from([(100, 100), (OUTER_SESSION, OUTER_SESSION), (OUTER_SESSION, 100), (0, 0), (60, 60)]))
def test_what_processes_can_make_is_made_again(todo: list[tuple[str, int, int]], root: tuple[int, int]) -> None:
    kernel = Kernel(*root)
    for number, (what, a, b) in enumerate(todo):
        pids = list(kernel.table)
        pid, other = pids[a % len(pids)], pids[b % len(pids)]
        if pid in kernel.zombies:
            continue
        if what == "fork":
            kernel.fork(pid, 101 + number)
        elif what == "adopt":
            kernel.subreapers.add(pid)
        elif what == "adopt no more":
            kernel.subreapers.discard(pid)
        elif what in ("exit", "zombie"):
            if pid != 100:
                kernel.exit(pid, reaped=what == "exit")
        elif what == "setsid":
            kernel.setsid(pid)
        elif what == "setpgid":
            kernel.setpgid(pid, pid)
        else:
            kernel.setpgid(pid, kernel.table[other].pgid)
    made = born(birth_order.arrange(image_of(kernel), INIT))
    for pid, one in kernel.table.items():
        assert (made[pid].sid, made[pid].pgid) == (one.sid, one.pgid)
        if pid != 100:
            assert made[pid].parent == one.parent
    assert made[100].parent == (PARENT if PARENT in made else INIT)


def process(image: pb.Tree, pid: int, ppid: int, sid: int, pgid: int) -> None:
    image.processes.add(pid=pid, ppid=ppid, sid=sid, pgid=pgid).threads.add(tid=pid)


def test_a_group_whose_leader_is_gone_is_held_by_a_stand_in() -> None:
    image = pb.Tree()
    process(image, 100, 1, 100, 100)
    process(image, 102, 100, 100, 101)
    top = birth_order.arrange(image, INIT)
    stand_in = next(member for member in top.walk() if member.pid == 101)
    assert stand_in.only_group
    assert stand_in in next(member for member in top.walk() if member.pid == 100).children


@pytest.mark.parametrize(
    ("told", "processes"),
    [
        ("one id", [(100, 1, 100, 100), (100, 100, 100, 100)]),
        ("not in the image", [(100, 1, 100, 100), (102, 101, 100, 100)]),
        (
            "none of its ancestors",
            [(100, 1, 50, 50), (101, 100, 101, 101), (102, 101, 50, 50), (103, 102, 60, 60), (60, 100, 60, 60)],
        ),
        (
            "none of its ancestors",
            [(100, 1, 100, 100), (102, 100, 50, 50), (103, 102, 60, 60), (104, 100, 60, 60), (105, 104, 50, 50)],
        ),
        ("an id that no process", [(1, 0, 1, 1)]),
    ],
)
def test_an_impossible_tree_is_refused_by_name(told: str, processes: list[tuple[int, int, int, int]]) -> None:
    image = pb.Tree()
    for one in processes:
        process(image, *one)
    with pytest.raises(RestoreRefused, match=told):
        birth_order.arrange(image, INIT)

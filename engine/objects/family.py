"""Who is born of whom: an order of births that gives every process its parent, its session and its group.

A process's session is its parent's at the moment of its birth, until it calls setsid(). So what is to live in a
session is born after its leader's setsid(), and what is not, before. PIDs that the tree refers to but does not
contain, as the root's parent or the leader of its session, are taken by *stand-ins*.

Documented in: setsid(2), setpgid(2), credentials(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torpor.errors import Reason, RestoreRefused
from torpor.image import image_pb2 as pb

OUTSIDE = (0, 1)
"""PIDs that no process of ours has: 0 is what the kernel shows for one of another namespace."""


@dataclass
class Member:
    """A process to be born: one of the image, or a stand-in."""

    pid: int
    sid: int
    """0: its parent's."""
    pgid: int
    """0: its parent's."""
    image: pb.Process | None = None
    """None: a stand-in."""
    children: list[Member] = field(default_factory=list)
    early: list[Member] = field(default_factory=list)
    """Children that are born before it leaves its parent's session; they are in `children` too."""
    only_group: bool = False
    """A stand-in that ends when all have joined its group: the group lives on without it."""

    @property
    def leads_session(self) -> bool:
        """Whether it calls setsid()."""
        return self.sid == self.pid

    @property
    def births(self) -> list[Member]:
        """Its children in the order of their births."""
        return self.early + [child for child in self.children if child not in self.early]

    def walk(self) -> Iterator[Member]:
        """It and all below it, parents first."""
        waiting = [self]
        while waiting:
            member = waiting.pop(0)
            yield member
            waiting += member.children


def arrange(image: pb.Tree, init: int) -> Member:
    """All that is to be born, below an init with the PID `init`.

    Raises:
        RestoreRefused: PIDs are not unique, parents are missing, or sessions and groups lie so that no order of
            births gives them.
    """
    root = image.processes[0]
    by_pid = {process.pid: Member(process.pid, process.sid, process.pgid, process) for process in image.processes}
    problems = list(_check(image, by_pid))
    if problems:
        raise RestoreRefused("the tree cannot be built", problems)
    top = chain = Member(init, 0, 0)
    if root.sid not in (*OUTSIDE, root.pid, init):
        chain = _below(chain, Member(root.sid, root.sid, 0))
    if root.ppid not in (*OUTSIDE, chain.pid, init):
        chain = _below(chain, Member(root.ppid, 0, root.ppid if root.pgid == root.ppid else 0))
    _below(chain, by_pid[root.pid])
    for process in image.processes[1:]:
        by_pid[process.ppid].children.append(by_pid[process.pid])
    known = {member.pid for member in top.walk()}
    for member in list(top.walk()):
        if member.pgid not in OUTSIDE and member.pgid not in known:
            known.add(member.pgid)
            _oldest(top, member.sid).children.append(Member(member.pgid, 0, member.pgid, only_group=True))
    _order(top, top.sid)
    return top


def _below(parent: Member, child: Member) -> Member:
    parent.children.append(child)
    return child


def _check(image: pb.Tree, by_pid: dict[int, Member]) -> Iterator[Reason]:
    tids = [thread.tid for process in image.processes for thread in process.threads]
    if len(set(tids)) != len(tids) or len(by_pid) != len(image.processes):
        yield Reason("the image", "it has two processes or threads with one id")
    for process in image.processes:
        name = f"process {process.pid}"
        if process.pid in OUTSIDE or not process.threads or process.threads[0].tid != process.pid:
            yield Reason(name, "it has no main thread, or an id that no process of a tree has")
        if process is not image.processes[0] and process.ppid not in by_pid:
            yield Reason(name, f"its parent {process.ppid} is not in the image")
        if process.sid not in (*by_pid, *OUTSIDE, image.processes[0].sid):
            yield Reason(name, f"it lives in session {process.sid}, whose leader is gone", "this is not restored yet")


def _oldest(top: Member, sid: int) -> Member:
    """The first member of a session, to whom a stand-in for a group's leader is born."""
    return next(member for member in top.walk() if member.sid == sid and member is not top)


def _needed(member: Member) -> int:
    """The session that a member must be born in; 0: any."""
    if not member.leads_session:
        return member.sid
    needs = {_needed(child) for child in member.children} - {0, member.pid}
    if len(needs) > 1:
        raise _no_order(member)
    return needs.pop() if needs else 0


def _order(member: Member, born_in: int) -> None:
    if not member.leads_session and member.sid not in (0, born_in):
        raise _no_order(member)
    after = member.pid if member.leads_session else born_in
    for child in member.children:
        need = _needed(child)
        if need in (0, after):
            _order(child, after)
        elif need == born_in:
            member.early.append(child)
            _order(child, born_in)
        else:
            raise _no_order(child)


def _no_order(member: Member) -> RestoreRefused:
    why = f"it lives in session {member.sid}, into which its parent cannot bear it any more"
    reason = Reason(f"process {member.pid}", why, "this is not restored yet")
    return RestoreRefused("the tree cannot be built", [reason])

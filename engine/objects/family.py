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
UNKNOWN_PID = -1
"""init's own outside a capsule: nothing refers to it."""
MAX_PID = 1 << 22
"""PID_MAX_LIMIT (include/linux/threads.h)."""
INIT_SESSION = 0
"""The session, or group, that init is in and that is none of the tree's own."""


@dataclass(eq=False)
class Member:
    """A process to be born: one of the image, or a stand-in."""

    pid: int
    sid: int | None
    """None: its parent's."""
    pgid: int | None
    """None: its parent's."""
    image: pb.Process | None = None
    """None: a stand-in."""
    children: list[Member] = field(default_factory=list)
    early: list[Member] = field(default_factory=list)
    """Children that are born before it leaves its parent's session; they are in `children` too."""
    starts_group: bool = False
    """Somebody is in the group with its PID, if not itself: it starts that group, and may leave it later."""
    only_group: bool = False
    """A stand-in that ends when all have joined its group, or been born in its session: these live on without it."""

    @property
    def leads_session(self) -> bool:
        """Whether it calls setsid()."""
        return self.sid == self.pid

    @property
    def births(self) -> list[Member]:
        """Its children in the order of their births."""
        return self.early + [child for child in self.children if child not in self.early]

    @property
    def heirs(self) -> Iterator[Member]:
        """Its children when those that end have ended: theirs fall to it."""
        for child in self.children:
            yield child
            if child.only_group:
                yield from child.heirs

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
    by_pid = {process.pid: _member(process) for process in image.processes}
    _refuse("the tree cannot be built", _check(image, by_pid))
    gone = _link(image, by_pid)
    outer = _needed(by_pid[root.pid])
    _refuse("the tree cannot be built", _check_sessions(by_pid, {*gone, outer}))
    top = chain = Member(init, INIT_SESSION, INIT_SESSION)
    if outer:
        chain = _below(chain, Member(outer, outer, None))
    if root.ppid not in (*OUTSIDE, chain.pid):
        chain = _below(chain, Member(root.ppid, None, None))
    _below(chain, by_pid[root.pid])
    _add_groups(top)
    _order(top, INIT_SESSION)
    return top


def _member(process: pb.Process) -> Member:
    sid, pgid = (INIT_SESSION if number in OUTSIDE else number for number in (process.sid, process.pgid))
    return Member(process.pid, sid, pgid, process)


def _link(image: pb.Tree, by_pid: dict[int, Member]) -> dict[int, Member]:
    """Give every process its parent. A daemon that fell to a subreaper is first the child of a stand-in for its
    session's leader, which is gone; gives these stand-ins.
    """
    gone: dict[int, Member] = {}
    known = {pid for pid, member in by_pid.items() if member.leads_session}
    known |= {INIT_SESSION, by_pid[image.processes[0].pid].sid or INIT_SESSION}
    for process in image.processes[1:]:
        member, parent = by_pid[process.pid], by_pid[process.ppid]
        sid = member.sid or INIT_SESSION
        if sid not in known and sid != parent.sid and parent.image and parent.image.child_subreaper:
            if sid not in gone:
                gone[sid] = _below(parent, Member(sid, sid, None, only_group=True))
            if gone[sid] in parent.children:
                parent = gone[sid]
        _below(parent, member)
    return gone


def _below(parent: Member, child: Member) -> Member:
    parent.children.append(child)
    return child


def _add_groups(top: Member) -> None:
    """Mark who starts a group, and add stand-ins where nobody of the tree does."""
    members = {member.pid: member for member in top.walk()}
    for member in list(members.values()):
        if not member.pgid:
            continue
        if member.pgid not in members:
            # By the first of its session, who is there before all others of it.
            oldest = next(one for one in members.values() if one.sid == member.sid)
            members[member.pgid] = _below(oldest, Member(member.pgid, None, member.pgid, only_group=True))
        members[member.pgid].starts_group = True


def _refuse(what: str, reasons: Iterator[Reason]) -> None:
    if found := list(reasons):
        raise RestoreRefused(what, found)


def _check(image: pb.Tree, by_pid: dict[int, Member]) -> Iterator[Reason]:
    tids = [thread.tid for process in image.processes for thread in process.threads]
    if len(set(tids)) != len(tids) or len(by_pid) != len(image.processes):
        yield Reason("the image", "it has two processes or threads with one id")
    known: set[int] = set()
    for process in image.processes:
        name = f"process {process.pid}"
        if process.pid in OUTSIDE or not process.threads or process.threads[0].tid != process.pid:
            yield Reason(name, "it has no main thread, or an id that no process of a tree has")
        if max(process.pid, process.ppid, process.pgid, process.sid) >= MAX_PID:
            yield Reason(name, "it has an id that no kernel gives")
        if known and process.ppid not in known:
            yield Reason(name, f"its parent {process.ppid} is not in the image before it")
        known.add(process.pid)


def _check_sessions(by_pid: dict[int, Member], others: set[int | None]) -> Iterator[Reason]:
    sessions = {pid for pid, member in by_pid.items() if member.leads_session} | {INIT_SESSION} | others
    for member in by_pid.values():
        if member.sid not in sessions:
            why = f"it lives in session {member.sid}, whose leader is gone"
            yield Reason(f"process {member.pid}", why, "this is not restored yet")


def _needed(member: Member) -> int | None:
    """The session that a member must be born in; None: any."""
    if not member.leads_session:
        return member.sid
    needs = {_needed(child) for child in member.children} - {None, member.pid}
    if len(needs) > 1:
        raise _no_order(member)
    return needs.pop() if needs else None


def _order(member: Member, born_in: int) -> None:
    after = member.pid if member.leads_session else born_in
    for child in member.children:
        need = _needed(child)
        if need in (None, after):
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

"""The order in which processes are created, so that each gets its parent, its session and its process group.

A process is born into the session of its parent, until it calls setsid(). So members of a session are born after its
leader's setsid(), and others before. PIDs that the tree refers to but does not contain, such as the root's parent or
the leader of its session, are taken by *stand-ins*.

An orphan may be in a session that its parent was never in: it was born further down, and was reparented to its parent,
a subreaper, when the processes between them ended. A restore does the same: the orphan is born as the child of a
stand-in below its parent, and the stand-in ends when all are born. A daemon of the job, which is below no process of
the job, is reparented to init in this way.

Documented in: setsid(2), setpgid(2), credentials(7), prctl(2) on PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import chain

from torpor.errors import Reason, RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects.fds.pidfd import NOBODY

OUTSIDE = (0, 1)
"""PIDs that no process of a tree has: the kernel shows 0 for a process of another namespace."""
UNKNOWN_PID = -1
"""init's PID outside of a capsule: nothing refers to it."""
MAX_PID = 1 << 22
"""PID_MAX_LIMIT (include/linux/threads.h)."""
_OF_A_WAKE, _LOOKED_AT = 100, 10_000
"""How far above a tree's PIDs to look. A restore right after the save uses the first of these for its own processes,
and some kernels have few PIDs.
"""
INIT_SESSION = 0
"""The session or group of init, which is not one of the tree's."""


@dataclass(eq=False)
class Member:
    """A process to be born: one of the image, or a stand-in."""

    pid: int
    sid: int | None
    """None: the parent's session."""
    pgid: int | None
    """None: the parent's group."""
    image: pb.Process | None = None
    """None for a stand-in."""
    children: list[Member] = field(default_factory=list)
    early: list[Member] = field(default_factory=list)
    """Children that are born before it leaves its parent's session; `children` has them too."""
    starts_group: bool = False
    """It creates the process group with its PID, since some process is in that. It may leave the group later."""
    only_group: bool = False
    """A stand-in that ends when all have joined its group or were born in its session: these live on without it."""
    holder: Member | None = None
    """A stand-in that keeps the group with its PID alive while it moves to another one; `children` has it too."""
    is_nobody: bool = False
    """A stand-in for processes that have ended and were reaped, to which a pidfd still refers."""
    parent: Member | None = None
    """The parent at birth."""
    adopter: Member | None = None
    """Of a stand-in that ends when all are born: the ancestor to which its children are reparented."""
    adopted: list[Member] = field(default_factory=list)
    """Children that are reparented to it."""

    @property
    def leads_session(self) -> bool:
        """Whether it calls setsid()."""
        return self.sid == self.pid

    @property
    def births(self) -> list[Member]:
        """Its children in the order of their births. The holder of its group is born last."""
        early = {child.pid for child in self.early}
        late = [child for child in self.children if child.pid not in early and child is not self.holder]
        return [*self.early, *late, *([self.holder] if self.holder else [])]

    @property
    def heirs(self) -> list[Member]:
        """Its children when all are born and the stand-ins have ended that leave their children to an ancestor."""
        return [child for child in self.children if not child.adopter] + self.adopted

    def walk(self) -> Iterator[Member]:
        """It and its descendants, parents first."""
        waiting = [self]
        while waiting:
            member = waiting.pop(0)
            yield member
            waiting += member.children


def arrange(
    image: pb.Tree,
    init: int,
    joined: Set[int] = frozenset(),
    is_taken: Callable[[int], bool] = lambda _: False,
) -> Member:
    """Arrange all processes to be born, below an init with the PID `init`.

    Args:
        image: the tree.
        init: the PID of init.
        joined: sessions and groups that are treated as init's own.
        is_taken: whether a PID is in use where the tree is to live; stand-ins that may have any PID avoid it.

    Raises:
        RestoreRefused: PIDs are not unique, parents are missing, or no order of births gives the sessions and groups.
    """
    root = image.processes[0]
    by_pid = {process.pid: _member(process, {*OUTSIDE, *joined}) for process in image.processes}
    _raise_any("the tree cannot be built", _validate(image, by_pid))
    daemons = [by_pid[process.pid] for process in image.processes[1:] if not process.ppid]
    for process in image.processes[1:]:
        _below(by_pid[process.ppid or root.pid], by_pid[process.pid])
    free = _FreePids(image, is_taken)
    _Orphans(image, by_pid, free).place()
    top = Member(init, INIT_SESSION, INIT_SESSION)
    for daemon in daemons:
        _orphan(daemon, by_pid[root.pid], top, free)
    outer = _needs(by_pid[root.pid])[root.pid]
    lowest = top
    if outer:
        lowest = _below(lowest, Member(outer, outer, None))
    if root.ppid not in (*OUTSIDE, lowest.pid):
        lowest = _below(lowest, Member(root.ppid, None, None))
    _below(lowest, by_pid[root.pid])
    if any(one.HasField("pidfd") and one.pidfd.pid == NOBODY for one in image.descriptions):
        _below(by_pid[root.pid], Member(free.above(root.pid), None, None, only_group=True, is_nobody=True))
    _add_groups(top, free)
    _order(top)
    _raise_any("the tree cannot be built", _parted(image, by_pid))
    return top


def _member(process: pb.Process, as_init: Set[int]) -> Member:
    sid, pgid = (INIT_SESSION if number in as_init else number for number in (process.sid, process.pgid))
    return Member(process.pid, sid, pgid, process)


def _below(parent: Member, child: Member) -> Member:
    parent.children.append(child)
    child.parent = parent
    return child


class _Orphans:
    """Finds processes whose parents cannot have been in their session, and gives them stand-ins as parents at birth."""

    def __init__(self, image: pb.Tree, by_pid: dict[int, Member], free: _FreePids) -> None:
        self._by_pid = by_pid
        self._free = free
        self._root = by_pid[image.processes[0].pid]
        self._above_root = image.processes[0].ppid
        self._tids = {thread.tid for one in image.processes for thread in one.threads}
        self._entering: dict[int, list[tuple[Member, Member]]] = {}
        """For each session the processes that must be born in it but cannot be by their parent, with that parent."""

    def place(self) -> None:
        """Move them.

        Raises:
            RestoreRefused: this is impossible.
        """
        needs: dict[int, int | None] = {}
        for member in reversed(list(self._root.walk())):
            asked = {child.pid: needs[child.pid] for child in member.children}
            needs[member.pid] = early = self._birth_session(member, list(asked.values()))
            for child in member.children:
                session = asked[child.pid]
                if session not in (None, member.sid, early):
                    self._entering.setdefault(session or INIT_SESSION, []).append((child, member))
        for session, entries in self._entering.items():
            leader = self._by_pid.get(session)
            if leader and leader.leads_session:
                self._below_members(session, entries)
            elif session == INIT_SESSION or session == needs[self._root.pid] or session in self._tids:
                raise _no_order(entries[0][0])
            else:
                self._below_gone_leader(session, entries)
        if {member.pid for member in self._root.walk()} < self._by_pid.keys():
            raise _no_order(next(iter(self._entering.values()))[0][0])

    def _birth_session(self, member: Member, asked: Iterable[int | None]) -> int | None:
        """The session that a member must be born in; None: any. One that starts a session may have left another."""
        if not member.leads_session:
            return member.sid
        others = [session for session in dict.fromkeys(asked) if session not in (None, member.sid)]
        above = member.parent.sid if member.parent else self._above_root
        others.sort(key=lambda session: session != above)
        return next((session for session in others if self._is_outside(session, member)), None)

    def _is_outside(self, session: int | None, member: Member) -> bool:
        """Whether a process that is not a descendant of `member` is in the session too."""
        if session in (INIT_SESSION, self._above_root):
            return True
        inside = {one.pid for one in member.walk()}
        if member is self._root and session not in inside:
            # The root has left that session, or it came from a descendant that is gone: then a subreaper adopted its
            # members.
            return not (member.image and member.image.child_subreaper)
        return any(one.sid == session and one.pid not in inside for one in self._by_pid.values())

    def _below_members(self, session: int, entries: list[tuple[Member, Member]]) -> None:
        """Below each parent a member of the session lives, maybe its leader: a stand-in there creates the orphans."""
        members = [self._by_pid[session], *(one for one in self._by_pid.values() if one.sid == session)]
        stand_ins: dict[int, Member] = {}
        for orphan, parent in entries:
            if parent.pid not in stand_ins:
                bearers = (one for one in members if _is_below(one, parent) and not _is_below(one, orphan))
                if (bearer := next(bearers, None)) is None:
                    raise _no_order(orphan)
                stand_ins[parent.pid] = self._stand_in(bearer, self._free.above(bearer.pid), None, parent)
            _adopt(parent, orphan, stand_ins[parent.pid])

    def _below_gone_leader(self, session: int, entries: list[tuple[Member, Member]]) -> None:
        """The leader is gone: a stand-in takes its PID, below the lowest of the parents."""
        lowest = max((parent for _, parent in entries), key=lambda parent: sum(1 for _ in _ancestry(parent)))
        if not all(parent is lowest or _is_below(lowest, parent) for _, parent in entries):
            raise _no_order(entries[0][0])
        leader = self._stand_in(lowest, session, session, lowest)
        stand_ins = {lowest.pid: leader}
        for orphan, parent in entries:
            if parent.pid not in stand_ins:
                stand_ins[parent.pid] = self._stand_in(leader, self._free.above(session), None, parent)
            _adopt(parent, orphan, stand_ins[parent.pid])

    def _stand_in(self, bearer: Member, pid: int, sid: int | None, adopter: Member) -> Member:
        return _below(bearer, Member(pid, sid, None, only_group=True, adopter=adopter))


class _FreePids:
    """PIDs that no process of the tree has or refers to."""

    def __init__(self, image: pb.Tree, is_taken: Callable[[int], bool]) -> None:
        self._is_taken = is_taken
        self._taken = {number for one in image.processes for number in (one.pid, one.ppid, one.pgid, one.sid)}
        self._taken |= {thread.tid for one in image.processes for thread in one.threads}
        self._root, self._highest = image.processes[0].pid, max(self._taken)

    def above(self, pid: int) -> int:
        """A free PID that the kernel assigns soon after `pid`.

        It is between the PIDs of the tree, or above them, or (on a kernel with few PIDs) wherever one is free.
        """
        higher = range(self._highest + _OF_A_WAKE, min(self._highest + _LOOKED_AT, MAX_PID))
        above = chain(range(pid + 1, self._highest), higher)
        for number in chain(above, range(self._root, max(OUTSIDE), -1)):
            if number not in self._taken and not self._is_taken(number):
                self._taken.add(number)
                return number
        raise RestoreRefused("the tree cannot be built", [Reason("this host", "no PID is free for its stand-ins")])


def _orphan(daemon: Member, root: Member, top: Member, free: _FreePids) -> None:
    """Let a daemon, which was placed as a child of the root, be reparented to init."""
    if daemon.parent is root:
        pid = free.above(root.pid)
        stand_in = _below(root, Member(pid, _needs(daemon)[daemon.pid], None, only_group=True, adopter=top))
        root.children.remove(daemon)
        _below(stand_in, daemon)
    else:  # it is the child of a stand-in that would have left it to the root
        assert daemon.parent
        root.adopted.remove(daemon)
        daemon.parent.adopter = top
    top.adopted.append(daemon)


def _adopt(parent: Member, orphan: Member, stand_in: Member) -> None:
    parent.children.remove(orphan)
    parent.adopted.append(_below(stand_in, orphan))


def _ancestry(member: Member) -> Iterator[Member]:
    """The ancestors of a member when all are born, the nearest first."""
    above = member
    while above.parent:
        above = above.parent.adopter or above.parent
        yield above


def _is_below(member: Member, other: Member) -> bool:
    return any(one is other for one in _ancestry(member))


def _add_groups(top: Member, free: _FreePids) -> None:
    """Mark who creates a group. Add stand-ins if no process of the tree does, or if it has moved to another group."""
    members = {member.pid: member for member in top.walk()}
    for member in list(members.values()):
        if not member.pgid:
            continue
        if member.pgid not in members:
            # The oldest member of the session creates it: it is there before all others, and stays.
            oldest = next(one for one in members.values() if one.sid == member.sid and not one.adopter)
            members[member.pgid] = _below(oldest, Member(member.pgid, None, member.pgid, only_group=True))
        members[member.pgid].starts_group = True
    for member in members.values():
        if member.starts_group and not member.leads_session and member.pgid != member.pid:
            pid = free.above(max([member.pid, *(child.pid for child in member.children)]))
            member.holder = _below(member, Member(pid, None, None, only_group=True))


def _raise_any(what: str, reasons: Iterator[Reason]) -> None:
    if found := list(reasons):
        raise RestoreRefused(what, found)


def _validate(image: pb.Tree, by_pid: dict[int, Member]) -> Iterator[Reason]:
    tids = [thread.tid for process in image.processes for thread in process.threads]
    if len(set(tids)) != len(tids) or len(by_pid) != len(image.processes):
        yield Reason("the image", "it has two processes or threads with one id")
    known: set[int] = set()
    for process in image.processes:
        name = f"process {process.pid}"
        if process.pid in OUTSIDE or not process.threads or process.threads[0].tid != process.pid:
            yield Reason(name, "it has no main thread, or an id that no process of a tree has")
        if max(process.pid, process.ppid, process.pgid, process.sid) >= MAX_PID:
            yield Reason(name, "it has an invalid id")
        if known and process.ppid and process.ppid not in known:
            yield Reason(name, f"its parent {process.ppid} is not in the image before it")
        known.add(process.pid)
        if process.exit_signal > 65:
            yield Reason(name, f"the signal for its parent when it ends is invalid: {process.exit_signal - 1}")


def _parted(image: pb.Tree, by_pid: dict[int, Member]) -> Iterator[Reason]:
    """Find processes that share with their parent what only clone(2) can, but must be born below another process."""
    for process in image.processes:
        parent = by_pid[process.pid].parent
        if (process.shares_fds or process.shares_fs or process.exit_signal) and (
            not parent or parent.pid != process.ppid
        ):
            why = "it shares something with its parent (clone(2)), which cannot create it in its session"
            yield Reason(f"process {process.pid}", why, "this is not restored yet")


def _needs(top: Member) -> dict[int, int | None]:
    """The session in which a member and each of its descendants must be born, by PID; None: any.

    Raises:
        RestoreRefused: its children are in more sessions than it can have been in.
    """
    found: dict[int, int | None] = {}
    for member in reversed(list(top.walk())):
        needs = {found[child.pid] for child in member.children} - {None, member.pid}
        if member.leads_session and len(needs) > 1:
            raise _no_order(member)
        found[member.pid] = (needs.pop() if needs else None) if member.leads_session else member.sid
    return found


def _order(top: Member) -> None:
    """Determine who is born before its parent starts a session."""
    needs = _needs(top)
    waiting = [(top, INIT_SESSION)]
    while waiting:
        member, born_in = waiting.pop()
        after = member.pid if member.leads_session else born_in
        for child in member.children:
            need = needs[child.pid]
            if need not in (None, after):
                if need != born_in:
                    raise _no_order(child)
                member.early.append(child)
            waiting.append((child, after if need in (None, after) else born_in))


def _no_order(member: Member) -> RestoreRefused:
    why = f"it is in session {member.sid}, and none of its ancestors could have created it there"
    reason = Reason(f"process {member.pid}", why, "this is not restored yet")
    return RestoreRefused("the tree cannot be built", [reason])

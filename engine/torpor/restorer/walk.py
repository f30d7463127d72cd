"""The walk: give a tree its PIDs where the user may not choose them, by cloning when the kernel's next PID is right.

Processes and threads are created in the order in which the kernel assigns their PIDs. A child must be created by its
own parent, and before or after the parent's setsid() as it was at first. So some have to wait for others. A PID that
was missed comes again in the next round through all PIDs.
"""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.arch.x86_64 import NR
from torpor.objects.process import threads
from torpor.objects.process.birth_order import Member
from torpor.remote import pid_allocation
from torpor.remote.batch import Call
from torpor.remote.blank import Blanks, PidTaken, Task, Work
from torpor.remote.pid_allocation import Numbers, Walk
from torpor.restorer.plan import Plan, ProcessPlan

SPARE_ROUNDS = 5
"""Additional rounds through all PIDs that a walk may take if other programs get a PID first."""
_APART = {NR.clone3, NR.setsid, NR.setpgid}
"""Calls before or after which children must be created; for threads that does not matter."""


class Route:
    """The processes and threads of a tree that are still to be created, in the order in which that is possible."""

    def __init__(self, top: Member, threads: Mapping[int, Sequence[int]]) -> None:
        """
        Args:
            top: the process that exists already, with its descendants to create.
            threads: the ids of threads other than the main one, by PID.
        """
        self._threads = threads
        self._members = {member.pid: member for member in top.walk()}
        self._ready: list[int] = []
        """The PIDs and thread ids that may be created now, sorted."""
        self._parents: dict[int, Member] = {}
        self._groups: dict[int, list[list[int]]] = {}
        """By parent: groups of children that must wait until the children before them exist."""
        self._waited_for: dict[int, int] = {}
        """By parent: how many children of its current group do not exist yet."""
        self._arrive(top)

    def __bool__(self) -> bool:
        return bool(self._ready)

    def next(self, last: int) -> tuple[int, Member]:
        """Return the PID or thread id that comes first after `last`, and its parent."""
        at = bisect_right(self._ready, last)
        pid = self._ready[at if at < len(self._ready) else 0]
        return pid, self._parents[pid]

    def born(self, pid: int) -> None:
        """Note that a process or thread was created."""
        self._ready.remove(pid)
        parent = self._parents.pop(pid)
        if (member := self._members.get(pid)) is None:  # a thread
            return
        self._waited_for[parent.pid] -= 1
        if not self._waited_for[parent.pid]:
            self._go_on(parent)
        self._arrive(member)

    def _arrive(self, member: Member) -> None:
        self._add(self._threads.get(member.pid, ()), member)
        early, holder = [child.pid for child in member.early], [member.holder.pid] if member.holder else []
        late = [child.pid for child in member.births if child.pid not in {*early, *holder}]
        self._groups[member.pid] = [group for group in (early, late, holder) if group]
        self._go_on(member)

    def _go_on(self, parent: Member) -> None:
        if groups := self._groups[parent.pid]:
            group = groups.pop(0)
            self._waited_for[parent.pid] = len(group)
            self._add(group, parent)

    def _add(self, pids: Sequence[int], parent: Member) -> None:
        for pid in pids:
            insort(self._ready, pid)
            self._parents[pid] = parent


def length(top: Member, threads: Mapping[int, Sequence[int]], numbers: Numbers, last: int) -> int:
    """Return how many PIDs a walk passes if `last` was the last PID that the kernel gave."""
    route, passed = Route(top, threads), 0
    while route:
        pid, _ = route.next(last)
        passed += numbers.left(last, pid) + 1
        route.born(pid)
        last = pid
    return passed


class Births:
    """The children and threads that a process of a plan creates, and its calls in between."""

    def __init__(self, plan: ProcessPlan) -> None:
        image = plan.member.image
        self.tids = [thread.tid for thread in image.threads[1:]] if image else []
        children = [call for call in plan.birth if call.nr == NR.clone3]
        pids = [child.pid for child in plan.member.births]
        self.calls = dict(zip([*pids, *self.tids], [*children, *plan.clones], strict=True))
        self._left = list(plan.birth)

    def due(self, child: int | None) -> list[Call]:
        """Return the remaining calls that come before the creation of a child or thread; None for all of them."""
        end = len(self._left)
        if child in self.tids:  # threads inherit the keyrings
            end = next((at for at, call in enumerate(self._left) if call.nr in _APART), end)
        elif child is not None:
            end = self._left.index(self.calls[child])
        due, others = [call for call in self._left[:end] if call.nr != NR.clone3], self._left[end:]
        # Earlier entries of the same group of children may still be created later.
        self._left = [call for call in self._left[:end] if call.nr == NR.clone3] + others
        return due


@dataclass(frozen=True)
class Walker:
    """Performs a walk."""

    walk: Walk
    loadavg: int
    """A descriptor of /proc/loadavg in all blank processes."""
    seconds: float
    """The most time that it may take."""

    def create_processes(self, plan: Plan, blanks: Blanks, init: Task) -> dict[int, list[Task]]:
        """Create all processes and threads of a plan below an init.

        Returns:
            The tasks of each process by PID, main thread first.

        Raises:
            PidTaken: other programs took a PID first again and again, or the walk took too long.
        """
        births = {one.member.pid: Births(one) for one in plan.processes}
        names = {one.member.pid: one.name for one in plan.processes}
        programs = {one.member.pid: one.program for one in plan.processes}
        top = plan.processes[0].member
        tasks = {top.pid: init}
        route = Route(top, {pid: one.tids for pid, one in births.items()})
        here = pid_allocation.here()
        passed, before = 0, pid_allocation.last()
        farthest = self.walk.length + SPARE_ROUNDS * (here.end - here.first)
        deadline = time.monotonic() + self.seconds
        while route:
            now = pid_allocation.last()
            passed, before = passed + (now - before) % (here.end - here.first), now
            pid, parent = route.next(now)
            if passed > farthest:
                raise PidTaken(f"did not get the PID {pid}: other programs took it each time")
            if time.monotonic() > deadline:
                raise PidTaken(f"the PID {pid} was not reached: the walk takes too long")
            own = births[parent.pid]
            if due := own.due(pid):  # these may fill memory, which takes time: other programs get PIDs meanwhile
                blanks.run([Work(tasks[parent.pid], due, blanks.tables.start)])
                continue
            self._approach(here, pid, deadline)
            flags = threads.clone_flags(own.calls[pid])
            task = blanks.clone(tasks[parent.pid], flags, pid, here, self.walk.pace.near, self.loadavg)
            if task is not None:
                task.name = names.get(pid, f"thread {pid} of {names[parent.pid]}")
                if (program := programs.get(pid)) and program != task.program:
                    blanks.execute(task, program)
                tasks[pid] = task
                route.born(pid)
        for pid, one in births.items():
            blanks.run([Work(tasks[pid], one.due(None), blanks.tables.start)])
        return {pid: [tasks[pid], *(tasks[tid] for tid in one.tids)] for pid, one in births.items()}

    def _approach(self, here: Numbers, pid: int, deadline: float) -> None:
        try:
            for left in pid_allocation.walk(here, pid, self.walk.pace):
                if time.monotonic() > deadline:
                    raise PidTaken(f"the PID {pid} is {left} numbers away, and the walk takes too long")
        except OSError as error:
            raise PidTaken(f"the PID {pid} cannot be reached: {error.strerror}") from error

"""Orphans that fell to a subreaper, in sessions and groups of others: each is whose it was, and where it was."""

import ctypes
import os
import signal
from collections.abc import Callable

from ready import judge, ready_and_wait, same

PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)


def child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        while True:
            signal.pause()
    return pid


def leave(pid: int) -> Callable[[], object]:
    """Bear somebody who is told of by a byte, and end."""

    def work() -> None:
        grandchild(pid)
        os._exit(0)

    return work


def grandchild(told: int) -> None:
    me = child(lambda: None)
    os.write(told, me.to_bytes(4, "little"))


def orphan(told: int) -> None:
    """Make an orphan in this process's session."""
    os.waitpid(child(leave(told)), 0)


def main() -> None:
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reader, told = os.pipe()

    def number() -> int:
        return int.from_bytes(os.read(reader, 4), "little")

    def leader() -> None:
        os.setsid()
        orphan(told)

    def leader_that_ends() -> None:
        os.setsid()
        orphan(told)
        os._exit(0)

    def leader_that_adopts() -> None:
        """Its own orphan falls to it, the one before that to the root."""
        os.setsid()
        orphan(told)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        orphan(told)

    def group_leader() -> None:
        os.setpgid(0, 0)
        member = child(lambda: None)
        os.write(told, member.to_bytes(4, "little"))

    living = child(leader)
    found = {"living": (number(), living)}
    gone = child(leader_that_ends)
    found["gone"] = (number(), gone)
    os.waitpid(gone, 0)
    adopting = child(leader_that_adopts)
    found["passed on"] = (number(), adopting)
    kept = number()
    leads = child(group_leader)
    member = number()
    other = child(lambda: os.setpgid(0, 0))
    while os.getpgid(other) != other:
        os.sched_yield()
    os.setpgid(leads, other)  # it has left the group that has its PID
    os.close(reader)
    os.close(told)
    me = os.getpid()
    # Those who told of them may not have ended yet.
    for pid, parent in [*((pid, me) for pid, _ in found.values()), (kept, adopting)]:
        while parent_of(pid) != parent:
            os.sched_yield()
    ready_and_wait()

    for what, (pid, session) in found.items():
        same(parent_of(pid), me, f"the parent of the orphan whose leader is {what}")
        same(os.getsid(pid), session, f"the session of the orphan whose leader is {what}")
        os.kill(pid, signal.SIGKILL)
        same(os.waitpid(pid, 0), (pid, signal.SIGKILL), f"the end of the orphan whose leader is {what}")
    same((parent_of(kept), os.getsid(kept)), (adopting, adopting), "the orphan of a leader that adopts")
    same((os.getpgid(leads), os.getpgid(member), os.getpgid(other)), (other, leads, other), "groups")
    with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
        same(sorted(map(int, file.read().split())), sorted([living, adopting, leads, other]), "the children")
    for pid in (kept, member, living, adopting, leads, other):
        os.kill(pid, signal.SIGKILL)
    for pid in (living, adopting, leads, other, kept, member):
        os.waitpid(pid, 0)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rsplit(") ", 1)[1].split()[1])


judge(main)

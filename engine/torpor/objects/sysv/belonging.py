"""Which System V objects belong to a tree: those that its processes have used last.

That a process only knows the id of an object cannot be seen from outside. In an IPC namespace of the tree's own, all
objects belong to the tree. An object lives on after its last user, whose PID another process may have today: what a
process may not use is not its own.

Documented in: proc_sysvipc(5), semctl(2), msgctl(2), capabilities(7).
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.objects.part import EnteredTree, TreePart
from torpor.objects.sysv.ipc_namespace import is_apart
from torpor.remote.batch import Argument, Ask, Batch, Call, Out, Result
from torpor.remote.naming import describe_process

IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
_IPC_CREAT, _IPC_EXCL = 0o1000, 0o2000
RIGHTS = 0o777
_GROUP, _OTHERS = 0o070, 0o007
_CAPABILITIES = 1 << 15 | 1 << 21 | 1 << 6 | 1 << 7
"""CAP_IPC_OWNER and CAP_SYS_ADMIN, with which rights do not count; CAP_SETGID and CAP_SETUID, which give them."""
_LARGEST_STAT = 120
"""The size of a struct msqid64_ds in bytes; a struct semid64_ds is smaller."""
_AT_ONCE = 100
_LAG = 2.0
"""Seconds by which the time of a use may lie before the start of its process, at most. It is cut to a second, and of a
clock that only a tick moves on (kernel/time/timekeeping.c, ktime_get_real_seconds())."""


class Owner(NamedTuple):
    """Who may use an object (struct kern_ipc_perm)."""

    uid: int
    gid: int
    cuid: int
    """The user who made it; like the owner, this user may set its rights."""
    cgid: int
    mode: int


@dataclass
class Found:
    """The objects of one kind that belong to a tree."""

    ids: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    """Why something cannot be kept."""


class Users:
    """The processes of a tree in our IPC namespace: tells which System V objects they have used."""

    def __init__(self, pids: Sequence[int], waits: Iterable[tuple[int, int]] = ()) -> None:
        """
        Args:
            pids: the processes; also zombies, which may be the last that used an object.
            waits: the calls in which their threads wait, each with its first argument.
        """
        self._pids, self._members = pids, set(pids)
        self._waited = set(waits)
        self._started = cache(_started)

    def did(self, pid: int, moment: int, owner: Owner) -> bool:
        """Whether it was a process of the tree that used an object, in its lifetime: PIDs are reused."""
        return pid in self._members and self._is_user(pid, moment, owner)

    def may_have(self, pid: int, moment: int, owner: Owner) -> bool:
        """Whether a process of the tree has the PID, but began later, by this host's clock: see `unclear`."""
        return pid in self._members and not self.did(pid, moment, owner) and may_use(pid, owner)

    def _is_user(self, pid: int, moment: int, owner: Owner) -> bool:
        return self._started(pid) <= moment + _LAG and may_use(pid, owner)

    @staticmethod
    def unclear(pid: int, what: str) -> Reason:
        """Why what nobody but a process with this PID has used can neither be kept nor left out."""
        return reason(
            pid,
            f"{what} used by a process with its PID, before it began by this host's clock. If the clock was set since,"
            " this is its own; if not, remove it (ipcrm)",
        )

    def note(
        self,
        found: Found,
        number: int,
        what: str,
        calls: Iterable[int],
        uses: Iterable[tuple[int, int]],
        owner: Owner,
    ) -> None:
        """Add an object to what was found if it belongs to the tree; and why not, if others have used it too.

        Args:
            found: of this kind.
            number: the id of the object.
            what: the object in messages.
            calls: in which a thread may wait for it; the first argument is the id.
            uses: who has used it, and when.
            owner: who may use it.
        """
        uses = list(uses)
        mine = [pid for pid, moment in uses if self.did(pid, moment, owner)]
        if not mine and not any((call, number) in self._waited for call in calls):
            found.reasons += [
                self.unclear(pid, f"{what} {number} were") for pid, moment in uses if self.may_have(pid, moment, owner)
            ][:1]
            return
        found.ids.append(number)
        others = [
            pid for pid, moment in uses if pid > 0 and pid not in self._members and self._is_user(pid, moment, owner)
        ]
        if others:
            why = f"{describe_process(others[0])}, outside of the tree, has used them too"
            found.reasons.append(reason([*mine, *self._pids][0], f"it uses {what} {number}, and {why}"))


class Grabbed(Protocol):
    """What was read of the objects of one kind."""

    reasons: list[Reason]
    """Why something cannot be kept."""


G = TypeVar("G", bound=Grabbed)


class SystemV(TreePart[None, G, None]):
    """System V objects of one kind."""

    @abstractmethod
    def find(self, users: Users) -> Found:
        """Find what a tree in our IPC namespace has used."""

    @abstractmethod
    def find_all(self, ask: Ask) -> Found:
        """Find everything in a tree's own IPC namespace."""

    def preflight(self, pids: Sequence[int]) -> Iterator[Reason]:
        """What others have used too."""
        yield from self.find(Users(pids)).reasons if pids and not is_apart(pids[0]) else ()

    def found(self, tree: EnteredTree) -> Found:
        """What belongs to a frozen tree."""
        root = tree.processes[0]
        if is_apart(root.pid):
            return self.find_all(root.ask)
        return self.find(Users(tree.pids, chain.from_iterable(one.calls() for one in tree.processes)))

    def unsupported(self, grabbed: G) -> Iterator[Reason]:
        """What others use too, or cannot be read or made again."""
        yield from grabbed.reasons

    def host(self) -> None:
        """The calls depend on nothing."""


def every(ask: Ask, number: int, how_many: Sequence[int], of_one: Callable[[Batch, int], int], room: int) -> list[int]:
    """The ids of all objects of a kind in the IPC namespace of a process.

    Args:
        ask: lets a process of the tree make calls.
        number: the system call.
        how_many: the arguments with which it returns the highest index.
        of_one: adds the call to a batch that returns the id of the object with an index.
        room: bytes that the first call writes.
    """
    batch = Batch()
    last = batch.add(number, *how_many, Out(room))
    count = ask(batch).result(last) + 1
    found: list[int] = []
    for at in range(0, count, _AT_ONCE):
        batch = Batch()
        entries = [of_one(batch, index) for index in range(at, min(at + _AT_ONCE, count))]
        replies = ask(batch)
        found += [one for one in map(replies.result, entries) if one >= 0]
    return found


def status_room() -> Out:
    """Room for the status of a set or a queue."""
    return Out(_LARGEST_STAT)


def may_use(pid: int, owner: Owner) -> bool:
    """Whether a process may use an object today, in any way: who may set its rights may, and who must be asked.

    Threads may have ids of their own. A process that is gone is not judged.
    """
    try:
        return any(_may_use(procfs.read(f"/proc/{pid}/task/{tid}/status"), owner) for tid in procfs.threads(pid))
    except (FileNotFoundError, ProcessLookupError):
        return True


def _may_use(text: bytes, owner: Owner) -> bool:
    status = procfs.status(text)
    uids, gids, groups = ({int(one) for one in status[name].split()} for name in (b"Uid", b"Gid", b"Groups"))
    return bool(
        not uids.isdisjoint((owner.uid, owner.cuid))
        or (owner.mode & _GROUP and not (gids | groups).isdisjoint((owner.gid, owner.cgid)))
        or owner.mode & _OTHERS
        or int(status[b"CapPrm"], 16) & _CAPABILITIES
    )


def _started(pid: int) -> float:
    """When a process started, in seconds of CLOCK_REALTIME, as in the times of System V objects."""
    try:
        return procfs.stat(pid).began_ns / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return float("inf")


def reason(pid: int, why: str) -> Reason:
    """Why a process cannot be kept."""
    return Reason(describe_process(pid), why)


def rows(kind: str) -> Iterator[dict[str, int]]:
    """The lines of /proc/sysvipc/KIND, by the names of the columns; the rights are octal there."""
    try:
        text = procfs.read(f"/proc/sysvipc/{kind}").decode()
    except FileNotFoundError:
        return
    heading, *lines = text.splitlines()
    names = heading.split()
    for line in lines:
        yield {name: int(word, 8 if name == "perms" else 10) for name, word in zip(names, line.split(), strict=True)}


def owner_of_row(row: dict[str, int]) -> Owner:
    """Who may use the object of a line."""
    return Owner(*(row[name] for name in ("uid", "gid", "cuid", "cgid", "perms")))


# Restore


def create(kind: str, number: int, call: int, arguments: Sequence[Argument], mode: int, name: str) -> Iterator[Call]:
    """Make an object with its old id (CONFIG_CHECKPOINT_RESTORE): the first calls of a table.

    Args:
        kind: sem, msg or shm.
        number: the id.
        call: the system call that makes it.
        arguments: those of the call before its flags.
        mode: the rights. The owner may always read and write for now.
        name: the object in messages.
    """
    text = b"%d" % number
    path = f"/proc/sys/kernel/{kind}_next_id"
    yield Call(NR.open, (path.encode() + b"\0", os.O_WRONLY | os.O_CLOEXEC), None, f"opening {path}")
    yield Call(NR.write, (Result(0), text, len(text)), len(text), f"choosing the id of {name}")
    yield Call(NR.close, (Result(0),), 0, f"closing {path}")
    flags = _IPC_CREAT | _IPC_EXCL | mode & RIGHTS | 0o600
    yield Call(call, (*arguments, flags), number, f"making {name}")


def owner_of(uid: int, gid: int, *, owner: bool) -> tuple[int, int]:
    """The user and group that an object gets: those of the image, or ours where these are not set."""
    return (uid, gid) if owner else (os.geteuid(), os.getegid())

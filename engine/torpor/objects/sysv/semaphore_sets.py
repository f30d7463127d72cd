"""System V semaphore sets, and each process's adjustments for them (SEM_UNDO).

Kept: id, key, size, permissions, values, and for every process the adjustments that the kernel makes when it ends. A
tree with sets is restored into an IPC namespace of its own. Not kept: times, and the PID that used a semaphore last
(GETPID), which becomes that of init or of a process with an adjustment. The old sets stay on the host until somebody
removes them.

No interface shows adjustments. But an operation with SEM_UNDO fails with ERANGE if it would move an adjustment out of
its range, before anything else is checked (ipc/sem.c, perform_atomic_semop). So each process tries operations that
would move it just to the limit, followed by one that must fail: that one ends the call with EAGAIN, and nothing has
changed. A binary search for the limit gives the adjustment.

Documented in: semop(2), semctl(2), sysvipc(7).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.part import EnteredTree, Stage, Step
from torpor.objects.process import sharing
from torpor.objects.sysv.belonging import (
    IPC_SET,
    IPC_STAT,
    RIGHTS,
    Found,
    SystemV,
    Users,
    create,
    every,
    owner_of,
    owner_of_row,
    rows,
    status_room,
)
from torpor.remote.batch import Ask, Batch, Call, Out
from torpor.remote.sys import try_syscall

GETPID, GETALL, SETALL, SEM_INFO, SEM_STAT_ANY = 11, 13, 17, 19, 20
KCMP_SYSVSEM = 6
_STAT = struct.Struct("<iIIIII24x4qQ16x")  # struct semid64_ds (arch/x86/include/uapi/asm/sembuf.h)
_OPERATION = struct.Struct("<Hhh")  # struct sembuf
SEM_UNDO, IPC_NOWAIT = 0x1000, 0o4000
LARGEST = 32767
"""SEMVMX and SEMAEM: the largest value, and the largest adjustment."""
LARGEST_SET = 32000
"""SEMMSL: the kernel's default for the largest set."""
TOGETHER = 100
"""The semaphores that one call tries, each with up to four of the 500 operations that a call may have (SEMOPM)."""
CALLS = 15
"""The calls of one batch: with their operations they must fit into a thread's table."""
_WAITING = (NR.semop, NR.semtimedop)
"""Calls in which a thread may wait for semaphores."""
_VALUES_ROOM = 32 << 10
"""Bytes of values that one batch may read."""


class Status(NamedTuple):
    """The result of IPC_STAT for a set."""

    key: int
    uid: int
    gid: int
    mode: int
    size: int


@dataclass
class Set:
    """A set as it was."""

    id: int
    status: Status
    values: list[int]
    undo: dict[int, dict[int, int]] = field(default_factory=dict)
    """For each process, by its own PID, and each semaphore number, what is added when the process ends."""

    def why_not(self) -> str:
        """Why its adjustments cannot be made again; empty if they can."""
        for number, value in enumerate(self.values):
            mine = [adjustments[number] for adjustments in self.undo.values() if number in adjustments]
            begin = value + sum(mine)
            if begin < sum(one for one in mine if one > 0) or begin - sum(one for one in mine if one < 0) > LARGEST:
                what = f"semaphore {number} of the System V set {self.id}"
                return f"{what} has SEM_UNDO adjustments that cannot be set again"
        return ""


@dataclass
class Sets:
    """The sets of a tree."""

    sets: list[Set]
    reasons: list[Reason]
    """Why something cannot be kept."""


class SemaphoreSets(SystemV[Sets]):
    """The sets that belong to a tree."""

    def find(self, users: Users) -> Found:
        """Those whose semaphores its processes used last."""
        found = Found()
        for row in rows("sem"):
            # SETVAL and SETALL note the PID too, and ctime, not otime.
            number, moment = row["semid"], max(row["otime"], row["ctime"])
            last = {try_syscall(NR.semctl, number, one, GETPID) for one in range(row["nsems"])}
            uses = ((pid, moment) for pid in last)
            users.note(found, number, "the System V semaphores", _WAITING, uses, owner_of_row(row))
        return found

    def find_all(self, ask: Ask) -> Found:
        """All sets."""

        def of_one(batch: Batch, index: int) -> int:
            return batch.add(NR.semctl, index, 0, SEM_STAT_ANY, status_room())

        return Found(every(ask, NR.semctl, (0, 0, SEM_INFO), of_one, 40))

    def grab(self, tree: EnteredTree) -> Sets:
        """Read them, and what each process has to undo."""
        found = self.found(tree)
        sets, whys = grab(found.ids, {one.own_pid: one.ask for one in tree.processes})
        reasons = [*found.reasons, *(Reason(tree.processes[0].name, why) for why in whys)]
        for process in tree.processes if found.ids else ():
            reasons += own(process.name, process.pid, process.tids)
        return Sets(sets, reasons)

    def describe(self, grabbed: Sets, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Write them to the image."""
        for one in grabbed.sets:
            describe(one, image.semaphores.add())

    def validate_form(self, image: pb.Tree) -> Iterator[str]:
        """What in them is invalid."""
        for one in image.semaphores:
            yield from validate_form(one)

    def needs_ipc_namespace(self, image: pb.Tree) -> bool:
        """Their ids and keys are free there."""
        return bool(image.semaphores)

    def by_init(self, image: pb.Tree, host: None, *, owner: bool) -> Iterator[list[Call]]:
        """Make each set."""
        return (list(make(one, owner)) for one in image.semaphores)

    def calls(self, process: pb.Process, image: pb.Tree, host: None, *, owner: bool) -> Iterator[Step]:
        """Give each process what it has to undo."""
        return (Step(Stage.ALL_THREADS, call) for call in undo(process.pid, image))


def grab(ids: Sequence[int], askers: Mapping[int, Ask]) -> tuple[list[Set], list[str]]:
    """Read sets, and say what of them cannot be kept.

    Args:
        ids: the sets.
        askers: let the tree's living processes make calls, by their own PIDs.
    """
    root = next(iter(askers.values()))
    found: list[Set] = []
    reasons: list[str] = []
    for number in ids:
        batch = Batch()
        status = batch.add(NR.semctl, number, 0, IPC_STAT, Out(_STAT.size))
        replies = root(batch)
        if (result := replies.result(status)) < 0:
            reasons.append(f"it may not query the System V semaphores {number}: {os.strerror(-result)}")
            continue
        key, uid, gid, _, _, mode, *_, count = _STAT.unpack(replies.output(status, 3))
        if count * 2 > _VALUES_ROOM:
            reasons.append(f"the System V set {number} has {count} semaphores, more than can be read")
            continue
        batch = Batch()
        values = batch.add(NR.semctl, number, 0, GETALL, Out(count * 2))
        replies = root(batch)
        if (result := replies.result(values)) < 0:
            reasons.append(f"the System V semaphores {number} cannot be read: {os.strerror(-result)}")
            continue
        content = list(struct.unpack(f"<{count}H", replies.output(values, 3)))
        one = Set(number, Status(key, uid, gid, mode, count), content)
        for pid, ask in askers.items():
            undo, why = _adjustments(one, ask)
            if why:
                reasons.append(
                    f"process {pid} has SEM_UNDO adjustments of System V semaphores {number} that cannot be read: {why}"
                )
            elif undo:
                one.undo[pid] = undo
        if why := one.why_not():
            reasons.append(why)
        found.append(one)
    return found, reasons


def own(name: str, pid: int, tids: Sequence[int]) -> Iterator[Reason]:
    """Refuse threads with adjustments of their own (clone(2) without CLONE_SYSVSEM): only the first thread is asked."""
    for tid in tids:
        if tid != pid and sharing.compare(pid, tid, KCMP_SYSVSEM) in (1, 2):
            yield Reason(f"{name}, thread {tid}", "it has SEM_UNDO adjustments of its own, which is not kept")


def _adjustments(one: Set, ask: Ask) -> tuple[dict[int, int], str]:
    """A process's adjustments for a set, by semaphore number; or why they cannot be determined."""
    every = [_Trial(number, value, 0) for number, value in enumerate(one.values)]
    together = [every[at : at + TOGETHER] for at in range(0, len(every), TOGETHER)]
    crossed, why = _try(one.id, ask, [*map(_above, together), *map(_below, together)])
    if why or not any(crossed):
        return {}, why
    crossed, why = _try(one.id, ask, [*(_above([trial]) for trial in every), *(_below([trial]) for trial in every)])
    above, below = crossed[: len(every)], crossed[len(every) :]
    ranges = {number: (1, LARGEST + 1) for number in range(len(every)) if not why and (above[number] or below[number])}
    # Search for all limits at the same time.
    while not why and (open_ := {number: pair for number, pair in ranges.items() if pair[0] < pair[1]}):
        trials = [_Trial(number, one.values[number], sum(pair) // 2) for number, pair in open_.items()]
        crossed, why = _try(one.id, ask, [(_above if above[trial.number] else _below)([trial]) for trial in trials])
        for trial, beyond in zip(trials, crossed, strict=False):
            low, high = ranges[trial.number]
            ranges[trial.number] = (trial.bound + 1, high) if beyond else (low, trial.bound)
    return {number: low if above[number] else -low for number, (low, _) in ranges.items()}, why


class _Trial(NamedTuple):
    """A semaphore, its value, and a limit that its adjustment may have crossed."""

    number: int
    value: int
    bound: int


def _above(trials: Sequence[_Trial]) -> list[bytes]:
    """Operations: one fails with ERANGE if an adjustment is above its bound; else the last fails with EAGAIN."""
    found = []
    for number, value, bound in trials:
        found += _operations(number, (LARGEST - value, False), (bound - LARGEST, True))
    return [*found, *_operations(trials[-1].number, (-trials[-1].bound - 1, False))]


def _below(trials: Sequence[_Trial]) -> list[bytes]:
    """The same for an adjustment below its negated bound."""
    found, left = [], 0
    for number, value, bound in trials:
        found += _operations(number, (-value, False))
        left = LARGEST + 1 - bound
        if bound:
            found += _operations(number, (left, True))
        else:  # this takes more than one operation
            found += _operations(number, (LARGEST, True), (-LARGEST, False), (1, True))
            left = 1
    return [*found, *_operations(trials[-1].number, (-left - 1, False))]


def _operations(number: int, *changes: tuple[int, bool]) -> list[bytes]:
    return [
        _OPERATION.pack(number, change, IPC_NOWAIT | (SEM_UNDO if undo else 0)) for change, undo in changes if change
    ]


def _try(number: int, ask: Ask, attempts: Sequence[list[bytes]]) -> tuple[list[bool], str]:
    """Whether each attempt crossed a limit; or why that cannot be determined. No attempt changes anything."""
    crossed: list[bool] = []
    for at in range(0, len(attempts), CALLS):
        batch = Batch()
        entries = [
            batch.add(NR.semop, number, b"".join(operations), len(operations))
            for operations in attempts[at : at + CALLS]
        ]
        replies = ask(batch)
        for entry in entries:
            result = -replies.result(entry)
            if result not in (errno.EAGAIN, errno.ERANGE):
                return crossed, os.strerror(result)
            crossed.append(result == errno.ERANGE)
    return crossed, ""


def describe(one: Set, out: pb.SemaphoreSet) -> None:
    """Write a set to the image."""
    out.id, out.key, out.uid, out.gid, out.mode = one.id, *one.status[:4]
    out.values.extend(one.values)
    for pid, adjustments in one.undo.items():
        for number, value in adjustments.items():
            out.undo.add(pid=pid, number=number, value=value)


# Restore


def validate_form(one: pb.SemaphoreSet) -> Iterator[str]:
    """What in an image's set is invalid."""
    if not 0 < len(one.values) <= LARGEST_SET or any(value > LARGEST for value in one.values):
        yield f"it has an invalid System V set {one.id} of semaphores"
    elif any(undo.number >= len(one.values) or not -LARGEST <= undo.value <= LARGEST for undo in one.undo):
        yield f"it has an invalid SEM_UNDO adjustment of the System V set {one.id}"
    elif not all(0 <= value <= LARGEST for value in _before(one)):
        yield f"its SEM_UNDO adjustments of the System V set {one.id} are too large"


def _before(one: pb.SemaphoreSet) -> list[int]:
    """The values before processes made the operations that will be undone."""
    values = list(one.values)
    for undo in one.undo:
        values[undo.number] += undo.value
    return values


def make(one: pb.SemaphoreSet, owner: bool) -> Iterator[Call]:
    """Make a set, with the values from before the operations to be undone. Init runs these calls.

    Args:
        one: the set.
        owner: whether the image's user ids are set.
    """
    name, count = f"System V semaphores {one.id}", len(one.values)
    values = _before(one)
    rights = one.mode & RIGHTS
    yield from create("sem", one.id, NR.semget, (one.key, count), rights, name)
    yield Call(NR.semctl, (one.id, 0, SETALL, struct.pack(f"<{count}H", *values)), 0, f"setting {name}")
    uid, gid = owner_of(one.uid, one.gid, owner=owner)
    content = _STAT.pack(one.key, uid, gid, 0, 0, rights, 0, 0, 0, 0, 0)
    yield Call(NR.semctl, (one.id, 0, IPC_SET, content), 0, f"setting owner and rights of {name}")


def undo(pid: int, image: pb.Tree) -> Iterator[Call]:
    """The operations by which a process gets its adjustments."""
    for one in image.semaphores:
        for mine in one.undo:
            if mine.pid == pid:
                operation = _OPERATION.pack(mine.number, -mine.value, SEM_UNDO | IPC_NOWAIT)
                words = f"taking {mine.value} off semaphore {mine.number} of System V set {one.id}, to be undone"
                yield Call(NR.semop, (one.id, operation, 1), 0, words)

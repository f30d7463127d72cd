"""Have frozen processes report what this host lets nobody find out: where kcmp(2) or pidfd_getfd(2) is denied.

Default profiles of containers deny both. All processes report at the same time. Each connects a socket to us, sets a
umask that no other has, and waits. Now we see in /proc who shares a table of descriptors, in which several sockets are
new, or a current directory, with which the umask is shared. Who shares memory sees the table of calls of another. We
answer; each process takes its own umask again and sends its descriptors (SCM_RIGHTS).

If we die meanwhile, our ends of the sockets close: the processes go on as if they had been answered, and nothing of it
is left in them.

Documented in: unix(7), clone(2), umask(2).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.dump.process_dump import ProcessDump
from torpor.errors import CheckpointFailed, Reason, Refused
from torpor.objects.process import sharing
from torpor.probe import probe
from torpor.remote import copies, memory
from torpor.remote.batch import ENTRY_SIZE, Batch, Out, Result, Struct

_AT_ONCE = 250
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD, include/net/scm.h)."""
_PATIENCE = 10.0
"""Seconds."""
_UMASKS = 0o1000
_MSG_NOSIGNAL = 0x4000
_MSGHDR = struct.Struct("<QQ QQ QQ Q")
_UCRED = struct.Struct("<iII")
_NOT_SENT = "anon_inode:[io_uring]"
"""The kernel sends none of these (since 6.7); they are refused by name."""


@dataclass
class _Reporter:
    """A process that reports."""

    taken: ProcessDump
    umask: int
    """Its own one."""
    mark: int
    """A umask that no other process has."""
    numbers: list[int]
    """Its descriptors."""
    socket: socket.socket | None = None
    copies: dict[int, int] = field(default_factory=dict)

    @property
    def messages(self) -> list[list[int]]:
        """Its descriptors, as they are sent."""
        return [self.numbers[at : at + _AT_ONCE] for at in range(0, len(self.numbers), _AT_ONCE)]


def is_needed() -> bool:
    """Whether this host denies kcmp(2) or pidfd_getfd(2)."""
    return not (probe().kcmp and probe().pidfd_getfd)


@contextmanager
def reported(living: Sequence[ProcessDump]) -> Iterator[None]:
    """Within the block, know of frozen processes what kcmp(2) and pidfd_getfd(2) would tell, if this host denies these.

    Raises:
        Refused: they share something that is not kept.
        CheckpointFailed: they do not answer.
    """
    if not is_needed():
        yield
        return
    for taken in living:
        taken.listen()
    reporters = _reporters(living)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(b"")  # an abstract name that the kernel chooses
        listener.listen(len(reporters))
        for one in reporters:
            one.taken.begin_report(_batch(one, listener.getsockname()))
        with ExitStack() as connections:
            _accept(listener, reporters, connections)
            shared = _shared(reporters)
            for one in reporters:
                _receive(one)
                stack.enter_context(copies.sent_by(one.taken.pid, one.copies))
        for one in reporters:
            one.taken.finish_report()
        for one in reporters:
            stack.enter_context(sharing.known(one.taken.pid, shared[one.taken.pid]))
            one.taken.texts.shares_fs = sharing.KCMP_FS in shared[one.taken.pid]
        yield


def _reporters(living: Sequence[ProcessDump]) -> list[_Reporter]:
    own = [int(one.texts.status[b"Umask"], 8) for one in living]
    free = sorted(set(range(_UMASKS)).difference(own))
    if len(free) < len(living):
        why = f"{len(living)} processes cannot be compared at once where kcmp(2) is denied"
        raise Refused("the tree cannot be kept", [Reason("the tree", why, "see `torpor doctor`")])
    found = []
    for one, umask, mark in zip(living, own, free, strict=False):
        numbers = [n for n, link in _table(one.pid).items() if link != _NOT_SENT]
        found.append(_Reporter(one, umask, mark, sorted(numbers)))
    return found


def _batch(one: _Reporter, name: bytes) -> Batch:
    batch = Batch()
    messages = one.messages
    end = 5 + 2 * len(messages)
    address = struct.pack("<H", socket.AF_UNIX) + name
    made = batch.add(NR.socket, socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0, on_error=end + 1)
    batch.add(NR.umask, one.mark)
    batch.add(NR.connect, Result(made), address, len(address), on_error=4)
    batch.add(NR.recvfrom, Result(made), Out(8), 1, 0, 0, 0)
    batch.add(NR.umask, one.umask)
    for numbers in messages:
        batch.add(NR.sendmsg, Result(made), _message(numbers), _MSG_NOSIGNAL, on_error=end)
        batch.add(NR.recvfrom, Result(made), Out(8), 1, 0, 0, 0)
    batch.add(NR.close, Result(made))
    return batch


def _message(numbers: Sequence[int]) -> Struct:
    """A struct msghdr with a byte, and with descriptors as its control message."""
    size = 16 + 4 * len(numbers)
    control = struct.pack(f"<Qii{len(numbers)}i", size, socket.SOL_SOCKET, socket.SCM_RIGHTS, *numbers)
    header = _MSGHDR.pack(0, 0, 56, 1, 80, size, 0)
    return Struct(header + struct.pack("<QQ8x", 72, 1) + control, (16, 32, 56))


def _accept(listener: socket.socket, reporters: Sequence[_Reporter], connections: ExitStack) -> None:
    waiting = {one.taken.pid: one for one in reporters}
    deadline = time.monotonic() + _PATIENCE
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while waiting:
        if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
            first = next(iter(waiting.values()))
            why = f"{first.taken.name} does not report its descriptors: it cannot connect a unix socket to Torpor"
            raise CheckpointFailed(
                why, advice="start Torpor in the same network namespace, or raise its limit of open files"
            )
        other, _ = listener.accept()
        connections.enter_context(other)
        pid, *_ = _UCRED.unpack(other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if one := waiting.pop(pid, None):  # anybody may connect
            one.socket = other
            other.settimeout(_PATIENCE)


def _receive(one: _Reporter) -> None:
    """Let a process go on, and receive its descriptors."""
    assert one.socket
    for numbers in one.messages:
        one.socket.send(b"\0")
        _, received, _, _ = socket.recv_fds(one.socket, 1, len(numbers))
        one.copies.update(zip(numbers, received, strict=False))
    with suppress(OSError):
        one.socket.send(b"\0")


def _table(pid: int, tid: int = 0) -> dict[int, str]:
    """What the descriptors of a process or thread lead to."""
    folder, found = f"/proc/{pid}/task/{tid or pid}/fd", {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}")
        except OSError:  # its path is longer than the kernel shows
            found[int(name)] = ""
    return found


def _umask(pid: int, tid: int) -> int:
    return int(procfs.status(procfs.read(f"/proc/{pid}/task/{tid}/status"))[b"Umask"], 8)


def _shared(reporters: Sequence[_Reporter]) -> Mapping[int, frozenset[int]]:
    """What each process shares with its parent: KCMP_FILES, KCMP_FS.

    Raises:
        Refused: they share more than that, or threads have something of their own.
    """
    tables = {one.taken.pid: _table(one.taken.pid) for one in reporters}
    seen: dict[int, dict[int, object]] = {sharing.KCMP_FILES: {}, sharing.KCMP_FS: {}}
    reasons: list[Reason] = []
    for one in reporters:
        pid = one.taken.pid
        new = {number: link for number, link in tables[pid].items() if number not in one.numbers}
        seen[sharing.KCMP_FILES][pid] = frozenset((n, link) for n, link in new.items() if link.startswith("socket:"))
        seen[sharing.KCMP_FS][pid] = _umask(pid, pid)
        for tid in one.taken.tids:
            owned = [what for what, differs in (
                ("descriptors", _table(pid, tid) != tables[pid]),
                ("a current directory", _umask(pid, tid) != seen[sharing.KCMP_FS][pid]),
            ) if differs]  # fmt: skip
            if owned:
                why = f"it has {', '.join(owned)} of its own, which is not kept"
                reasons.append(Reason(f"{one.taken.name}, thread {tid}", why))
    found: dict[int, frozenset[int]] = {}
    for one in reporters:
        pid, parent = one.taken.pid, one.taken.process.parent
        with_parent = {kind for kind, by_pid in seen.items() if parent and by_pid.get(parent.pid) == by_pid[pid]}
        found[pid] = frozenset(with_parent)
    reasons += _with_others(reporters, seen, found)
    reasons += _of_memory(reporters)
    if reasons:
        raise Refused("the tree cannot be kept", reasons)
    return found


def _with_others(
    reporters: Sequence[_Reporter], seen: Mapping[int, Mapping[int, object]], found: Mapping[int, frozenset[int]]
) -> Iterator[Reason]:
    """Who shares something with another than its parent."""
    for kind, by_pid in seen.items():
        groups: defaultdict[object, list[_Reporter]] = defaultdict(list)
        for one in reporters:
            if kind not in found[one.taken.pid]:
                groups[by_pid[one.taken.pid]].append(one)
        for first, *others in groups.values():
            for one in others:
                yield Reason(f"{first.taken.name} and {one.taken.name}", sharing.SHARED[kind])


def _of_memory(reporters: Sequence[_Reporter]) -> Iterator[Reason]:
    """Who sees at the place of its own table of calls that of another."""
    for at, one in enumerate(reporters):
        place, size = one.taken.injection.table(), 2 * ENTRY_SIZE  # the second call sets the mark
        mine = memory.read(one.taken.pid, place, size)
        for other in reporters[at + 1 :]:
            if other.taken.texts.stat.fields[25:28] != one.taken.texts.stat.fields[25:28]:
                continue  # their code or their stacks lie elsewhere
            with suppress(OSError):  # it has nothing there
                if memory.read(other.taken.pid, place, size) == mine:
                    yield Reason(f"{one.taken.name} and {other.taken.name}", sharing.SHARED[sharing.KCMP_VM])

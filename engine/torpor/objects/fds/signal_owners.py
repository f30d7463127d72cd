"""The owners of descriptors' signals, and the signals (F_SETOWN_EX, F_SETSIG and O_ASYNC of fcntl(2)).

The owner is a thread, a process or a group. It is kept if it is in the tree. An owner that has ended gets no signals,
neither before the checkpoint nor after the restore. Regular files store an owner, but send nothing. A process of the
tree sets all of this when all threads and groups exist: the kernel sends the signals with that process's credentials
and its descriptor number (si_fd).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, Process, Tree
from torpor.objects.kind import (
    GrabbedDescriptors,
    OpenFile,
    SignalOwner,
    Unsupported,
)
from torpor.objects.opening import KEPT_BY_FCNTL, O_ASYNC
from torpor.remote.batch import Call
from torpor.remote.naming import describe_process
from torpor.remote.sys import syscall

F_SETSIG, F_GETSIG = 10, 11
F_SETOWN_EX, F_GETOWN_EX = 15, 16
OWNER_EX = struct.Struct("=ii")
"""struct f_owner_ex: the type of the owner, and its id."""
THREAD, PROCESS, GROUP = 0, 1, 2
SIGNALS = 64


def ask(fd: int) -> SignalOwner | None:
    """The owner of a descriptor's signals; None if there is no owner and no chosen signal. Raises OSError."""
    answer = bytearray(OWNER_EX.size)
    syscall(NR.fcntl, fd, F_GETOWN_EX, answer)
    kind, pid = OWNER_EX.unpack(answer)
    signal = fcntl.fcntl(fd, F_GETSIG)
    if kind == THREAD and pid:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            status = procfs.status(procfs.read(f"/proc/{pid}/status"))
            return SignalOwner(kind, pid, signal, int(status[b"Tgid"]), int(status[b"NSpid"].split()[-1]))
    return SignalOwner(kind, pid, signal) if pid or signal or kind else None


def unsupported(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
    """Say why the owner of a description cannot be kept."""
    owner = open_file.owner
    if owner is None or not owner.pid or stat.S_ISREG(open_file.stat.st_mode):  # a file sends none
        return
    if open_file.under_way_to is not None:
        yield Unsupported("it sends signals (F_SETOWN), and lies in a socket's queue", "try again", passing=True)
    if _member(owner, tree) is None:
        who = f"process group {owner.pid}" if owner.kind == GROUP else describe_process(owner.pid)
        yield Unsupported(f"it sends signals to {who}, outside of the tree (F_SETOWN)", "set the owner to 0")


def describe(
    open_file: OpenFile[Any], tree: GrabbedDescriptors, processes: Mapping[int, Process], out: Description
) -> None:
    """Write the owner to the image, with its id there."""
    owner = open_file.owner
    if owner is None:
        return
    out.signal_owner.kind, out.signal_owner.signal = owner.kind, owner.signal
    member = _member(owner, tree)
    if member is None:  # it has ended
        return
    if owner.kind == GROUP:
        out.signal_owner.pid = processes[member].pgid
    elif owner.kind == PROCESS:
        out.signal_owner.pid = processes[member].pid
    else:
        out.signal_owner.pid = owner.number


def _member(owner: SignalOwner, tree: GrabbedDescriptors) -> int | None:
    """A process of the tree that is the owner, or that the owner is a thread or the group of."""
    if owner.kind == GROUP:
        return next((pid for pid in tree.pids if _group(pid, tree) == owner.pid), None)
    pid = owner.pid if owner.kind == PROCESS else owner.process
    return pid if pid in tree.pids else None


def _group(pid: int, tree: GrabbedDescriptors) -> int:
    if pid in tree.terminals:
        return tree.terminals[pid].pgrp
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


# -------------------------------------------------------------------------------------------- from an image


def validate(image: Tree) -> Iterator[Reason]:
    """The owners in an image must be in it."""
    threads = {thread.tid for process in image.processes for thread in process.threads}
    known = {
        THREAD: threads,
        PROCESS: {process.pid for process in image.processes},
        GROUP: {process.pgid for process in image.processes},
    }
    for index, description in enumerate(image.descriptions):
        owner = description.signal_owner
        if owner.kind not in known or owner.signal > SIGNALS or (owner.pid and owner.pid not in known[owner.kind]):
            yield Reason("the image", f"description {index} sends signals to a process that is not in the image")


def take(image: Tree, slots: Mapping[int, int]) -> None:
    """Set the signals of descriptions that no process has, since they are in sockets' queues. Their owners have ended.

    Args:
        image: the tree.
        slots: a descriptor of each description, by its index.

    Raises:
        OSError: the kernel refuses it.
    """
    had = {entry.description for process in image.processes for entry in process.fds}
    for index, description in enumerate(image.descriptions):
        if index not in had and index in slots:
            for command, argument, _ in _settings(description):
                syscall(NR.fcntl, slots[index], command, argument)


def restore_calls(process: Process, image: Tree) -> Iterator[Call]:
    """The calls by which a process sets the owners of descriptions that it is the first to have."""
    before: set[int] = set()
    for other in image.processes:
        if other is process or other.pid == process.pid:
            break
        before.update(entry.description for entry in other.fds)
    for entry in process.fds:
        description = image.descriptions[entry.description]
        if entry.description in before or description.WhichOneof("kind") == "outside":
            continue
        before.add(entry.description)
        for command, argument, words in _settings(description):
            yield Call(NR.fcntl, (entry.fd, command, argument), 0, f"{words} of descriptor {entry.fd}")


def _settings(description: Description) -> Iterator[tuple[int, int | bytes, str]]:
    """The fcntl(2) calls that set it, each with a description."""
    owner = description.signal_owner
    if owner.signal:
        yield F_SETSIG, owner.signal, "choosing the signal"
    if owner.pid or owner.kind:
        yield F_SETOWN_EX, OWNER_EX.pack(owner.kind, owner.pid), "setting the owner"
    if description.flags & O_ASYNC:
        yield fcntl.F_SETFL, description.flags & (KEPT_BY_FCNTL | O_ASYNC), "switching on the signals"

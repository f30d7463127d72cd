"""What a restored process must do with its descriptors itself, when it has its own and no others.

A POSIX lock belongs to the process that takes it. A pidfd, or a file of /proc/PID, can only be opened when its
process is there. A watch of an
epoll on a signalfd waits for the signals of the process that adds it, and one on a pidfd or a POSIX message queue needs
what the restorer has not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Epoll, Process, Tree
from torpor.objects.fds import locks, proc_files
from torpor.objects.fds.epoll import EPOLL_CTL_ADD, EVENT, WATCHED_BY_OWNERS, watcher
from torpor.objects.fds.pidfd import NOBODY, Pidfd
from torpor.objects.fds.proc_files import ProcFile
from torpor.remote.batch import Call

F_SETFD = 2


def steps(process: Process, image: Tree, nobody: int = 0) -> Iterator[Call]:
    """The calls, for a process all of whose descriptors are in place, and only these.

    Args:
        process: of the image.
        image: the tree.
        nobody: the PID of a process that will have ended and been waited for.
    """
    yield from _opened(process, image, nobody)
    for index, description in enumerate(image.descriptions):
        for watch in description.epoll.watches:
            if image.descriptions[watch.description].WhichOneof("kind") in WATCHED_BY_OWNERS:
                yield from _watch(process, image, index, watch)
    yield from locks.steps(process)


def is_own(image: Tree, description: int) -> bool:
    """Whether a description is made by the processes that have it."""
    return image.descriptions[description].WhichOneof("kind") in (Pidfd.field, ProcFile.field)


def _opened(process: Process, image: Tree, nobody: int) -> Iterator[Call]:
    taken = {entry.fd for entry in process.fds if not is_own(image, entry.description)}
    for entry in sorted(process.fds, key=lambda entry: entry.fd):
        if not is_own(image, entry.description):
            continue
        description = image.descriptions[entry.description]
        # The kernel gives the lowest free number, and in the order of the numbers wanted it is never above that.
        got = next(number for number in range(entry.fd + 1) if number not in taken)
        if description.WhichOneof("kind") == ProcFile.field:
            number, args, words = proc_files.opening(description)
            yield Call(number, args, got, words)
        else:
            pid = description.pidfd.pid if description.pidfd.pid != NOBODY else nobody
            yield Call(NR.pidfd_open, (pid, description.flags & os.O_NONBLOCK), got, f"opening process {pid}")
        words = f"placing descriptor {entry.fd}"
        if got != entry.fd:
            yield Call(NR.dup3, (got, entry.fd, os.O_CLOEXEC if entry.cloexec else 0), entry.fd, words)
            yield Call(NR.close, (got,), 0, f"closing descriptor {got}")
        elif not entry.cloexec:  # both calls set it
            yield Call(NR.fcntl, (got, F_SETFD, 0), 0, words)
        yield from proc_files.seeking(entry.fd, description)
        taken.add(entry.fd)


def _watch(process: Process, image: Tree, index: int, watch: Epoll.Watch) -> Iterator[Call]:
    found = watcher(image, index, watch)
    if found is not None and found[0] == process.pid:
        event = EVENT.pack(watch.events, watch.data)
        words = f"waiting for descriptor {watch.fd} with descriptor {found[1]}"
        yield Call(NR.epoll_ctl, (found[1], EPOLL_CTL_ADD, watch.fd, event), 0, words)

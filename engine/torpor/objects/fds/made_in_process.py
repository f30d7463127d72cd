"""What a restored process must do with its descriptors itself, when it has all of its own and no others.

A POSIX lock belongs to the process that takes it. A pidfd or a file of /proc/PID can only be opened when its process
exists: the first process that has it does so, and passes it to the others that have the same description
(`torpor.objects.fds.mailboxes`). An epoll watch on a signalfd waits for the signals of the process that adds it, and
one on a pidfd or a POSIX message queue needs a descriptor that the restorer does not have.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import count

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Epoll, Fd, Process, Tree
from torpor.objects.fds import locks, mailboxes, pidfd, proc_files
from torpor.objects.fds.epoll import EPOLL_CTL_ADD, EVENT, WATCHED_BY_OWNERS, watcher
from torpor.objects.fds.pidfd import Pidfd
from torpor.objects.fds.proc_files import ProcFile
from torpor.remote.batch import Call

F_SETFD = 2
FIELDS = (Pidfd.field, ProcFile.field)
"""The kinds that processes open themselves."""


class MadeInProcess:
    """The descriptions of an image that its processes open themselves."""

    def __init__(self, image: Tree, nobody: int = 0) -> None:
        """Find these descriptions.

        Args:
            image: the tree.
            nobody: the PID of a process that will have ended and been reaped.
        """
        self._image = image
        self._nobody = nobody
        mine = [index for index, one in enumerate(image.descriptions) if one.WhichOneof("kind") in FIELDS]
        self._holders = mailboxes.holders(image, mine)

    def __contains__(self, index: int) -> bool:
        return index in self._holders

    def mailboxes(self, process: Process) -> dict[int, int]:
        """The numbers of a process's mailboxes, by the indexes of those descriptions that it shares with others.

        None of its own descriptors has such a number.
        """
        indexes = dict.fromkeys(entry.description for entry in process.fds if entry.description in self)
        free = _free({entry.fd for entry in process.fds})
        return {index: next(free) for index in indexes if len(self._holders[index]) > 1}

    def opening(self, process: Process) -> Iterator[Call]:
        """The calls by which a process opens descriptions that it is the first to have, and passes them to the others.

        It has all of its other descriptors and its mailboxes, and nothing else.
        """
        left = self.mailboxes(process)
        taken = {entry.fd for entry in process.fds if entry.description not in self} | set(left.values())
        for index, entries in self._opened_by(process, first=True):
            free = _free(taken)
            got, spare = next(free), next(free)
            description = self._image.descriptions[index]
            if description.WhichOneof("kind") == Pidfd.field:
                yield from pidfd.opening(description, got, spare, self._nobody)
            else:
                yield from proc_files.opening(description, got)
            yield from locks.calls(description, got)
            if index in left:
                yield mailboxes.leave(left[index], got)
            yield from _placed(got, entries)
            taken |= {entry.fd for entry in entries}

    def restore_calls(self, process: Process) -> Iterator[Call]:
        """The calls by which a process takes what others have passed to it, adds its own epoll watches, and locks
        files.
        """
        left = self.mailboxes(process)
        others = dict(self._opened_by(process, first=False))
        taken = {entry.fd for entry in process.fds if entry.description not in others} | set(left.values())
        for index, entries in others.items():
            got = next(_free(taken))
            yield mailboxes.take(left[index], f"taking what process {self._holders[index][0]} has opened")
            yield from _placed(got, entries)
            taken |= {entry.fd for entry in entries}
        for number in left.values():
            yield Call(NR.close, (number,), 0, f"closing mailbox {number}")
        for index, description in enumerate(self._image.descriptions):
            for watch in description.epoll.watches:
                if self._image.descriptions[watch.description].WhichOneof("kind") in WATCHED_BY_OWNERS:
                    yield from _watch(process, self._image, index, watch)
        yield from locks.restore_calls(process)

    def _opened_by(self, process: Process, *, first: bool) -> Iterator[tuple[int, list[Fd]]]:
        """The descriptions of a process with their descriptors: those that it opens (`first`), or the others."""
        found: dict[int, list[Fd]] = {}
        for entry in sorted(process.fds, key=lambda entry: entry.fd):
            if entry.description in self and (self._holders[entry.description][0] == process.pid) == first:
                found.setdefault(entry.description, []).append(entry)
        yield from found.items()


def _free(taken: Collection[int]) -> Iterator[int]:
    """Free numbers, the lowest first, as the kernel assigns them."""
    return (number for number in count() if number not in taken)


def _placed(got: int, entries: list[Fd]) -> Iterator[Call]:
    """The calls that move an opened descriptor to its final numbers. At first it is close-on-exec."""
    for entry in entries:
        words = f"placing descriptor {entry.fd}"
        if entry.fd != got:
            yield Call(NR.dup3, (got, entry.fd, os.O_CLOEXEC if entry.cloexec else 0), entry.fd, words)
        elif not entry.cloexec:
            yield Call(NR.fcntl, (got, F_SETFD, 0), 0, words)
    if got not in {entry.fd for entry in entries}:
        yield Call(NR.close, (got,), 0, f"closing descriptor {got}")


def _watch(process: Process, image: Tree, index: int, watch: Epoll.Watch) -> Iterator[Call]:
    found = watcher(image, index, watch)
    if found is not None and found[0] == process.pid:
        event = EVENT.pack(watch.events, watch.data)
        words = f"waiting for descriptor {watch.fd} with descriptor {found[1]}"
        yield Call(NR.epoll_ctl, (found[1], EPOLL_CTL_ADD, watch.fd, event), 0, words)

"""epoll: what a program waits for (epoll(7)).

A watch belongs to a description and to the number under which it was added. It exists while the description is open
anywhere, even if that number now leads elsewhere. fdinfo shows the number, the events and the data; kcmp(2) with
KCMP_EPOLL_TFD shows which description is meant, so that no watch is restored on the wrong one.

Kept: every watch, with its events, flags and data; the parameters of busy polling. Not kept: that an edge (EPOLLET) was
reported already: the first wait after the restore may report it again, which epoll(7) allows at any time. A one-shot
watch that has fired cannot be disarmed for EPOLLERR and EPOLLHUP, which the kernel adds to each: it may report these
again.

Watches on signalfds and pidfds are added by a process that has both (`torpor.objects.fds.made_in_process`). All others
are added in the restoring process, by a thread with its own descriptor table, in which every number is free: the kernel
stores the number, not the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.image.image_pb2 import Epoll as EpollMessage
from torpor.objects.kind import (
    Describing,
    FdReference,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
)
from torpor.objects.opening import Opening, naming, words
from torpor.probe import probe
from torpor.remote import copies
from torpor.remote.children import forked
from torpor.remote.sys import syscall, try_syscall
from torpor.util.workers import run_in_thread

KCMP_EPOLL_TFD = 7
CLOSE_RANGE_UNSHARE, _NO_FD = 2, (1 << 32) - 1
EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPIOCSPARAMS, EPIOCGPARAMS = 0x40088A01, 0x80088A02
PARAMETERS = struct.Struct("=IHBx")
"""struct epoll_params: microseconds, packets at once, whether busy polling is preferred."""
_USUAL_BUDGET = 64
"""NAPI_POLL_WEIGHT: a larger budget needs CAP_NET_ADMIN."""
EVENT = struct.Struct("=IQ")
"""struct epoll_event, which is packed on x86-64."""

WATCHED_BY_OWNERS = frozenset(("signalfd", "pidfd", "queue"))
"""Kinds that only a process of the tree itself can watch."""

_WATCH = re.compile(rb"^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)", re.MULTILINE)


@dataclass
class Watch:
    """What is watched, its number, and the events."""

    fd: int
    events: int
    data: int
    target: FdReference | None
    """A descriptor of it in the tree; None if there is none."""


@dataclass
class EpollState:
    """The watches of one epoll instance."""

    watches: list[Watch] = field(default_factory=list)
    busy_poll: bytes = b""
    """struct epoll_params; empty if none are set, or the kernel has none (before 6.9)."""


class Epoll(Kind[EpollState]):
    """An epoll instance."""

    field = "epoll"

    def matches(self, seen: Seen) -> bool:
        """By its link."""
        return seen.link == "anon_inode:[eventpoll]"

    def grab(self, open_file: OpenFile[EpollState], pidfd: int, *, content: bool) -> EpollState:
        """Read the parameters. The watches need the whole tree: see `finish`."""
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return EpollState(busy_poll=_busy_poll(copy))

    def finish(self, mine: list[OpenFile[EpollState]], tree: GrabbedDescriptors) -> None:
        """Find what is watched. Two watches with one number are distinguished by their order in fdinfo."""
        for open_file in mine:
            seen: dict[int, int] = {}
            for match in _WATCH.finditer(open_file.info):
                fd = int(match[1])
                target = _target(open_file, fd, seen.get(fd, 0), tree)
                seen[fd] = seen.get(fd, 0) + 1
                open_file.state.watches.append(Watch(fd, int(match[2], 16), int(match[3], 16), target))

    def unsupported(self, open_file: OpenFile[EpollState], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Everything that is watched must be in the tree.

        While the tree still runs, descriptors and watches are read one after the other: something that is opened or
        closed in between looks like a watch on something outside.
        """
        if open_file.state.busy_poll and not _may_poll(open_file.state.busy_poll):
            yield Unsupported("its busy polling (EPIOCSPARAMS) needs a privilege", "set its budget to 64 at most")
        for watch in open_file.state.watches:
            if watch.target is None:
                yield Unsupported(
                    f"it watches what was descriptor {watch.fd} and is open only outside the tree",
                    "remove it from the epoll, or close it everywhere",
                    passing=True,
                )
            elif tree.by_reference[watch.target].kind.field in WATCHED_BY_OWNERS and (
                watch.target.fd != watch.fd or watch.target.pid not in {holder.pid for holder in open_file.references}
            ):
                yield Unsupported(
                    f"it watches what was descriptor {watch.fd} and has another number by now",
                    "remove it from the epoll",
                    passing=True,
                )

    def describe(
        self, open_file: OpenFile[EpollState], out: Description, tree: GrabbedDescriptors, image: Describing
    ) -> None:
        """Write its watches."""
        out.epoll.SetInParent()
        out.epoll.busy_poll = open_file.state.busy_poll
        for watch in open_file.state.watches:
            if watch.target is not None:
                index = image.index_of(tree.by_reference[watch.target], watch.target.fd)
                out.epoll.watches.add(fd=watch.fd, events=watch.events, data=watch.data, description=index)

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """The watches must lead to descriptions of the image, and epoll must support the restorer's standard
        descriptors.
        """
        for index, description in mine.items():
            if (busy := description.epoll.busy_poll) and not (len(busy) == PARAMETERS.size and _may_poll(busy)):
                yield Reason("an epoll", "its busy polling (EPIOCSPARAMS) needs a privilege", "restore it as root")
            for watch in description.epoll.watches:
                if _by_owner(image, watch) and watcher(image, index, watch) is None:
                    yield Reason("the image", f"no process has what an epoll watches as descriptor {watch.fd}")
        watched = {watch.description for description in mine.values() for watch in description.epoll.watches}
        for index in sorted(watched):
            if index >= len(image.descriptions):
                yield Reason("the image", f"an epoll watches description {index}: there is none")
            elif image.descriptions[index].WhichOneof("kind") == "outside":
                number = image.descriptions[index].outside.stdio
                if number < len(stdio) and not _can_be_watched(stdio[number]):
                    yield Reason(
                        f"descriptor {number}",
                        "the program waits for it with epoll, and its replacement here does not support that",
                        "give it a pipe or a terminal",
                    )

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make all of them, then their watches: one epoll may watch another."""
        for index, description in mine.items():
            opening.place(index, syscall(NR.epoll_create1, os.O_CLOEXEC))
            if parameters := description.epoll.busy_poll:
                with naming(description):
                    fcntl.ioctl(opening.slots[index], EPIOCSPARAMS, parameters)
        all_watches = [
            (index, watch)
            for index, description in mine.items()
            for watch in description.epoll.watches
            if not _by_owner(opening.image, watch)
        ]
        # If slots have numbers that are watched, each watch overwrites others in the thread's table.
        crowded = any(watch.fd >= opening.base for _, watch in all_watches)
        for watches in [[one] for one in all_watches] if crowded else [all_watches]:
            run_in_thread(partial(_watch_all, watches, opening))


def _busy_poll(fd: int) -> bytes:
    parameters = bytearray(PARAMETERS.size)
    known = try_syscall(NR.ioctl, fd, EPIOCGPARAMS, parameters) == 0
    return bytes(parameters) if known and any(parameters) else b""


def _may_poll(parameters: bytes) -> bool:
    _, budget, prefer = PARAMETERS.unpack(parameters)
    return procfs.is_root() or (budget <= _USUAL_BUDGET and not prefer)


def watcher(image: Tree, index: int, watch: EpollMessage.Watch) -> tuple[int, int] | None:
    """The process that has both an epoll and what it watches: its PID, and the epoll's number there."""
    for process in image.processes:
        epoll = next((entry.fd for entry in process.fds if entry.description == index), None)
        if epoll is not None and any((e.fd, e.description) == (watch.fd, watch.description) for e in process.fds):
            return process.pid, epoll
    return None


def _by_owner(image: Tree, watch: EpollMessage.Watch) -> bool:
    known = watch.description < len(image.descriptions)
    return known and image.descriptions[watch.description].WhichOneof("kind") in WATCHED_BY_OWNERS


def _target(epoll: OpenFile[EpollState], number: int, which: int, tree: GrabbedDescriptors) -> FdReference | None:
    """A descriptor of what the epoll watches as its `which`-th watch under `number`."""
    for holder in epoll.references:
        candidate = FdReference(holder.pid, number)
        if (holder.pid, number) in tree.by_reference and _is_watched(candidate, holder, number, which):
            return candidate
    # Rare: the number was closed or reused, and the description is open under another one.
    first_of_each = (open_file.references[0] for open_file in tree.open_files if open_file.under_way_to is None)
    return next((h for h in first_of_each if _is_watched(h, epoll.references[0], number, which)), None)


def _is_watched(candidate: FdReference, epoll: FdReference, number: int, which: int) -> bool:
    if not probe().kcmp:
        return not which and _has_watch(copies.ours(*candidate), copies.ours(*epoll), number)
    slot = array("I", (epoll.fd, number, which))  # struct kcmp_epoll_slot
    # Not found (ENOENT, EBADF) is a valid answer: before the freeze descriptors come and go.
    return try_syscall(NR.kcmp, candidate.pid, epoll.pid, KCMP_EPOLL_TFD, candidate.fd, slot) == 0


def _has_watch(candidate: int, epoll: int, number: int) -> bool:
    """Whether an epoll watches a description under a number, without kcmp(2): then it cannot watch it a second time.

    Args:
        candidate, epoll: our copies of their descriptors.
        number: the number, which another descriptor may have in this process: so a child tries it.
    """

    def attempt() -> None:
        other = fcntl.fcntl(epoll, fcntl.F_DUPFD_CLOEXEC, number + 1)
        os.dup2(candidate, number)
        if (answer := try_syscall(NR.epoll_ctl, other, EPOLL_CTL_ADD, number, EVENT.pack(0, 0))) == 0:
            try_syscall(NR.epoll_ctl, other, EPOLL_CTL_DEL, number, EVENT.pack(0, 0))
        os._exit(0 if answer == -errno.EEXIST else 1)

    _, status = os.waitpid(forked(attempt), 0)
    return status == 0


def _watch_all(watches: Sequence[tuple[int, EpollMessage.Watch]], opening: Opening) -> None:
    """Run in a thread whose descriptor table ends with it; the slots keep what is watched open."""
    # It closes none, and gives the thread a table of its own. Default profiles of containers deny unshare(2).
    syscall(NR.close_range, _NO_FD, _NO_FD, CLOSE_RANGE_UNSHARE)
    for index, watch in watches:
        _watch(opening, index, watch)


def _watch(opening: Opening, index: int, watch: EpollMessage.Watch) -> None:
    event = EVENT.pack(watch.events, watch.data)
    epoll = fcntl.fcntl(opening.slots[index], fcntl.F_DUPFD_CLOEXEC, watch.fd + 1)  # its slot may have that number
    os.dup2(opening.slots[watch.description], watch.fd)
    try:
        syscall(NR.epoll_ctl, epoll, EPOLL_CTL_ADD, watch.fd, event)
    except OSError as error:
        target = words(opening.image.descriptions[watch.description])
        raise RestoreFailed(f"an epoll cannot watch {target} as descriptor {watch.fd}: {error.strerror}") from error
    finally:
        os.close(epoll)


def _can_be_watched(fd: int) -> bool:
    with select.epoll() as probe:
        try:
            probe.register(fd, 0)
        except PermissionError:  # epoll_ctl(2): EPERM, the file has no poll
            return False
        return True

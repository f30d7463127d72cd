"""Every open file description of a tree: from the running processes into an image, and back.

    survey     nothing is frozen: what could not be kept?
    grab       frozen: take what changes. Copies are closed again at once.
    arm_reset  just before a tree is killed for good: let go of its ports at once
    describe   the tree runs again: fill Tree.descriptions, Tree.pipes and each Process.fds
    check      before a restore touches anything: what could not be given back here?
    open_all   each description once, in the restoring process, at a *slot*: a number above all of the tree's
    placement  for one process: dup3() from the slots to its own numbers
    closing    for one process: close everything else, slots included

A new kind is a module with a class of `torpor.objects.kind.Kind`, and one line in KINDS.

Who owns a descriptor's signals is in `torpor.objects.fds.signal_owners`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torpor import procfs
from torpor.errors import Reason, Refused, RestoreFailed
from torpor.image.image_pb2 import Description, Lock, Tree
from torpor.objects.fds import grabbing, locks, made_in_process, ptys, signal_owners
from torpor.objects.fds.devices import CharDevice
from torpor.objects.fds.epoll import Epoll
from torpor.objects.fds.eventfd import Eventfd
from torpor.objects.fds.fifos import Fifo
from torpor.objects.fds.files import Directory, RegularFile
from torpor.objects.fds.inotify import Inotify
from torpor.objects.fds.memfd import MemoryDescriptor, MemoryFile, memory_files
from torpor.objects.fds.path_only import NameOnly
from torpor.objects.fds.pidfd import Pidfd
from torpor.objects.fds.pipes import Pipe
from torpor.objects.fds.posix_queues import MessageQueue
from torpor.objects.fds.proc_files import ProcFile
from torpor.objects.fds.ptys import PseudoTerminal
from torpor.objects.fds.signalfd import Signalfd
from torpor.objects.fds.stdio import Terminal
from torpor.objects.fds.timerfd import Timerfd
from torpor.objects.fds.unlinked import Unlinked
from torpor.objects.fds.unsupported import UnsupportedKind
from torpor.objects.kind import (
    STDIO,
    Built,
    Describing,
    FdReference,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Unsupported,
    descriptor_name,
)
from torpor.objects.memory.mapped_files import mapped_both_ways
from torpor.objects.opening import KNOWN_FLAGS, O_ASYNC, Opening
from torpor.objects.paths import mapped_names
from torpor.objects.paths.opener import O_TMPFILE, Openers
from torpor.objects.process import sharing
from torpor.objects.sockets import unix_sockets
from torpor.objects.sockets.netlink import Netlink
from torpor.objects.sockets.tcp import Tcp, arm_reset, choose_for_repair, hold_for_repair
from torpor.objects.sockets.udp import Udp
from torpor.objects.sockets.unix_sockets import Unix
from torpor.remote.batch import Ask
from torpor.remote.naming import describe_process

__all__ = [
    "GrabbedDescriptors",
    "MemoryFile",
    "Opened",
    "arm_reset",
    "choose_for_repair",
    "describe",
    "first_slot",
    "grab",
    "hold_for_repair",
    "memory_files",
    "notices",
    "open_all",
    "survey",
    "validate",
]

KINDS: tuple[Kind[Any], ...] = (
    MessageQueue(),  # before files: it looks like one
    ProcFile(),  # before files, too
    MemoryDescriptor(),  # before files: it is one
    Unlinked(),  # before files, too
    RegularFile(),
    Directory(),
    NameOnly(),
    CharDevice(),
    PseudoTerminal(),
    Terminal(),
    Pipe(),
    Fifo(),
    Eventfd(),
    Timerfd(),
    Signalfd(),
    Pidfd(),
    Inotify(),
    Unix(),
    Tcp(),
    Udp(),
    Netlink(),
    Epoll(),  # after what it may watch
    UnsupportedKind(),  # the rest
)

LAST_FD = (1 << 32) - 1
OUTSIDE = "its other end is outside of the tree"
_RINGS = 8
"""Extra numbers above those of the image, for descriptors that block each other's numbers."""
SPARE = 64
"""Descriptors that are open for a moment while others are made."""


# ------------------------------------------------------------------------------------------ from a live tree


def survey(pids: Sequence[int], *, reset_outside: bool = False, stdio: Mapping[int, int] | None = None) -> list[Reason]:
    """Say everything that cannot be kept, while the tree runs.

    Args:
        pids: the tree, parents before their children.
        reset_outside: as for `grab`.
        stdio: as for `grab`.
    """
    tree = grab(pids, content=False, reset_outside=reset_outside, stdio=stdio)
    return [*_shared_tables(pids), *unsupported(tree), *mapped_names.unsupported(tree)]


def grab(
    pids: Sequence[int],
    *,
    content: bool = True,
    reset_outside: bool = False,
    stdio: Mapping[int, int] | None = None,
    stats: Mapping[int, procfs.Stat] | None = None,
    built: Built | None = None,
) -> GrabbedDescriptors:
    """Grab every description of a tree: see `torpor.objects.fds.grabbing`.

    Args:
        pids: the tree, parents before their children. A process that ends meanwhile has no descriptors.
        content: also take the content of pipes and sockets; the tree is frozen.
        reset_outside: keep sockets with a peer outside of the tree, as sockets whose peer has closed.
        stdio: for descriptors of the first process, the standard descriptor of which each is a copy.
        stats: for each PID the stat with its session and controlling terminal; None: read it if there is a terminal.
        built: see `GrabbedDescriptors.built`.

    Raises:
        NotPermitted: a process belongs to another user.
    """
    return grabbing.grab(
        KINDS, pids, content=content, reset_outside=reset_outside, stdio=stdio, stats=stats, built=built
    )


def unsupported(tree: GrabbedDescriptors) -> list[Reason]:
    """Say everything in `tree` that cannot be kept."""
    return list(_all_unsupported(tree))


def describe(tree: GrabbedDescriptors, image: Tree, shared: Callable[[int, int], int]) -> None:
    """Write descriptions, pipes, and the descriptors of each process to `image`.

    Args:
        tree: what was grabbed.
        image: has the processes of the tree, in the same order.
        shared: the index in Tree.shared of the memory with this device and inode: see `memory_files`.

    Raises:
        Refused: since the survey, something has appeared that cannot be kept.
    """
    if found := unsupported(tree):
        raise Refused("the tree has descriptors that cannot be kept", found)
    describing = Describing(image, {}, tree, shared)
    processes = dict(zip(tree.pids, image.processes, strict=True))
    order: list[tuple[OpenFile[Any], int | None]] = []
    for open_file in tree.open_files:
        for holder in open_file.references:
            key = (id(open_file), tree.stdio(open_file, holder.fd))
            if key not in describing.index:
                describing.index[key] = len(order)
                order.append((open_file, key[1]))
    for open_file, number in order:
        leased = id(open_file) in tree.lease_signals  # which sets O_ASYNC, too
        description = image.descriptions.add(flags=open_file.flags & ~O_ASYNC if leased else open_file.flags)
        if number is None:
            signal_owners.describe(open_file, tree, processes, description)
            open_file.kind.describe(open_file, description, tree, describing)
        else:
            description.outside.stdio = number
            description.outside.was = open_file.kind.outside(open_file, tree) if tree.built is None else ""
    for holder, open_file in tree.by_reference.items():
        entry = processes[holder.pid].fds.add(
            fd=holder.fd,
            description=describing.index_of(open_file, holder.fd),
            cloexec=holder in tree.cloexec,
        )
        description = image.descriptions[entry.description]
        for lock in locks.parse(tree.locked.get(holder, ())):
            if lock.kind == Lock.POSIX:
                entry.locks.append(lock)
            elif lock.kind == Lock.FLOCK and (taker := _taker(b"FLOCK", open_file, tree)):
                if holder == taker:
                    entry.locks.add(kind=Lock.FLOCK_BY, exclusive=lock.exclusive)
            elif lock.kind == Lock.LEASE:
                if holder == (_taker(b"LEASE", open_file, tree) or open_file.references[0]):
                    entry.locks.add(kind=lock.kind, exclusive=lock.exclusive, signal=tree.lease_signals[id(open_file)])
            elif lock not in description.locks:
                description.locks.append(lock)
    if found := ptys.describe_sessions(describing):
        raise Refused("the tree has a session that cannot be kept", found)


def ask(tree: GrabbedDescriptors, processes: Mapping[int, Ask]) -> None:
    """Have the frozen processes make the calls that kinds of descriptions need: each makes a batch, by its PID."""
    for kind, mine in grabbing.by_kind(KINDS, tree):
        kind.ask(mine, tree, processes)


def notices(tree: GrabbedDescriptors) -> list[str]:
    """Say which descriptions a restore will not bring back as they were: one sentence each, for the user."""
    return [text for kind, mine in grabbing.by_kind(KINDS, tree) for text in kind.notices(mine, tree)]


def _taker(kind: bytes, open_file: OpenFile[Any], tree: GrabbedDescriptors) -> FdReference | None:
    """The descriptor by which to take a lock again: one of the process that took the lock, if that still has one."""
    owner = locks.owner(kind, tree.locked[open_file.references[0]])
    return next((holder for holder in open_file.references if holder.pid == owner), None)


def _all_unsupported(tree: GrabbedDescriptors) -> Iterator[Reason]:
    found = [(one, why) for one in tree.open_files if not tree.is_given(one) for why in _unsupported(one, tree)]
    # The survey does not read sockets' queues, and an end that seems to be outside may be in one.
    unseen = not tree.content and any(map(unix_sockets.may_hold_descriptors, tree.of(Unix)))
    if unseen and all(why.why.startswith(OUTSIDE) for _, why in found):
        found = []
    for open_file, why in found:
        yield Reason(f"{descriptor_name(open_file.references[0])} ({open_file.link})", *why)
    for holder, lines in sorted(tree.locked.items()):
        for why in locks.unsupported(lines):
            yield Reason(f"{descriptor_name(holder)} ({tree.by_reference[holder].link})", *why)


def _unsupported(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
    if open_file.owner and open_file.kind.outside(open_file, tree) and open_file.kind.stands_for(open_file, tree):
        yield Unsupported(
            "it sends signals (F_SETOWN), and the restorer's own descriptor will replace it", "set the owner to 0"
        )
    yield from signal_owners.unsupported(open_file, tree)
    if unknown := open_file.flags & ~(KNOWN_FLAGS | O_TMPFILE):
        yield Unsupported(f"it has status flags that are not known: {unknown:#o}")
    if open_file.flags & os.O_SYNC and not open_file.kind.is_opened:
        yield Unsupported(f"it has status flags that it cannot be given again: {open_file.flags & os.O_SYNC:#o}")
    if open_file.under_way_to is not None:
        if not open_file.kind.may_be_under_way:
            yield Unsupported("it lies in a socket's queue, and no process has it yet", "try again", passing=True)
        elif locks.lines(open_file.info):
            yield Unsupported("it is locked, and lies in a socket's queue", "try again", passing=True)
    kind, accepted = open_file.kind, tree.reset_outside and open_file.kind.may_be_reset
    if (outside := kind.outside(open_file, tree)) and not kind.stands_for(open_file, tree) and not accepted:
        yield Unsupported(
            f"{OUTSIDE} ({outside})",
            "close it, or checkpoint the whole tree of which both ends are a part",
        )
    if id(open_file) in tree.lease_signals and _is_mapped(open_file, tree):
        yield Unsupported(
            "it has a lease (F_SETLEASE) and is mapped: a restore would break the lease", "give the lease up"
        )
    yield from open_file.kind.unsupported(open_file, tree)


def _is_mapped(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> bool:
    """Whether a process of the tree has a file mapped: a restore would open such a file to check it."""
    for pid in tree.pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if any(one.inode == open_file.stat.st_ino and one.name[:1] == b"/" for one in procfs.mappings(pid)):
                return True
    return False


def _shared_tables(pids: Sequence[int]) -> Iterator[Reason]:
    """Threads with their own descriptor table (unshare(2), CLONE_FILES). sharing.py finds shared tables."""
    for pid in pids:
        for tid in _threads(pid):
            if sharing.compare(pid, tid, sharing.KCMP_FILES) in (1, 2) and not procfs.is_ending(pid, tid):
                yield Reason(
                    f"{describe_process(pid)}, thread {tid}",
                    "it has descriptors of its own (unshare(CLONE_FILES)), which is not kept yet",
                    "end the thread",
                )


def _threads(pid: int) -> list[int]:
    try:
        return [tid for tid in procfs.threads(pid) if tid != pid]
    except (FileNotFoundError, ProcessLookupError):
        return []


# -------------------------------------------------------------------------------------------- from an image


@dataclass
class Opened:
    """The descriptions of an image in the restoring process. A context manager: its exit closes them."""

    slots: dict[int, int]
    """For each description, by its index in the image, the descriptor that keeps it open here: its slot."""
    terminals: dict[int, int] = field(default_factory=dict)
    """The same for the sessions' terminals, by their index."""
    warnings: list[str] = field(default_factory=list)
    """Warnings for the user: what is not as before."""
    when_built: list[Callable[[], None]] = field(default_factory=list)
    """To call when the tree is built."""
    at_last: list[Callable[[], None]] = field(default_factory=list)
    """To call when the tree is released."""

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def let_go(self) -> None:
        """Let kept TCP connections go on.

        Raises:
            RestoreFailed: the kernel refuses.
        """
        self.built()
        try:
            for act in self.at_last:
                act()
        except OSError as error:
            raise RestoreFailed(f"a TCP connection cannot go on: {error.strerror}") from error

    def close(self) -> None:
        """Close the slots. What the processes have by now stays open."""
        self._close_terminals()
        while self.slots:
            os.close(self.slots.popitem()[1])

    def built(self) -> None:
        """Finish the descriptors when the tree is built: from now on they must show only the tree's own activity."""
        self._close_terminals()
        for act in self.when_built:
            act()

    def _close_terminals(self) -> None:
        """Close our copies of the sessions' terminals. A terminal that no process of the tree has open hangs up now."""
        while self.terminals:
            os.close(self.terminals.popitem()[1])


def validate(image: Tree, stdio: Sequence[int] = (0, 1, 2), *, standing: bool = False) -> list[Reason]:
    """Say everything that prevents opening the image's descriptions here and now. Changes nothing.

    Args:
        image: the tree; not trusted.
        stdio: the restorer's descriptors that replace 0, 1 and 2.
        standing: the tree itself still lives. Then what it uses (ports, names, locks) is not checked, and no file on
            which it has a lease is opened, since that would break the lease.
    """
    found = [*_validate_numbers(image), *ptys.validate_sessions(image), *signal_owners.validate(image)]
    if found:
        return found
    leased = locks.leased(image) if standing else set()
    for kind, mine in _by_kind(image):
        seen = {index: description for index, description in mine.items() if description.file.path not in leased}
        try:
            reasons = list(kind.validate(seen, image, stdio))
            found += reasons or ([] if standing else kind.validate_free(mine, image))
        except (ValueError, OverflowError) as error:  # a number or a name that no system call accepts
            found.append(Reason("the image", f"an invalid description of the kind {kind.field}: {error}"))
    return found if standing else found or list(locks.validate(image))


def open_all(
    image: Tree,
    shared: Callable[[int], int],
    stdio: Sequence[int] = (0, 1, 2),
    terminal: int = -1,
    openers: Openers | None = None,
) -> Opened:
    """Open every description of an image in this process, at a slot, for its children to inherit.

    The caller must have raised the soft limit of descriptors. The slots are not close-on-exec.

    Args:
        image: the tree, checked.
        shared: returns a read-write descriptor of shared memory, by its index in the image. The callee keeps it.
        stdio: the descriptors that replace 0, 1 and 2.
        terminal: the terminal that replaces a controlling terminal outside of the tree; -1: none.
        openers: open the paths of each description; None: beneath this process's own root directory.

    Raises:
        RestoreFailed: a description cannot be opened; none is left.
    """
    opening = Opening(image, stdio, shared, first_slot(image), openers or Openers(image))
    opened = Opened(opening.slots, opening.terminals, opening.warnings, opening.when_built, opening.at_last)
    try:
        if terminal >= 0 and (lost := ptys.lost(image)) is not None:
            opening.keep_terminal(lost, terminal)
        with opening.stack:
            for kind, mine in _by_kind(image):
                kind.open(mine, opening)
            for act in opening.later:
                act()
        for act in opening.to_watch:
            act()
        signal_owners.take(image, opening.slots)
        locks.take(image, opening.slots, but=(MessageQueue.field, *made_in_process.FIELDS))
    except BaseException:
        opened.close()
        raise
    return opened


def _by_kind(image: Tree) -> Iterator[tuple[Kind[Any], dict[int, Description]]]:
    """The kinds in the order in which they must be made, each with its descriptions by index."""
    for kind in KINDS:
        mine = {i: d for i, d in enumerate(image.descriptions) if d.WhichOneof("kind") == kind.field}
        if mine:
            yield kind, mine


def spared(image: Tree) -> set[int]:
    """The indexes of descriptions whose content a restore must not compare: see `Kind.spared`."""
    return {index for kind, mine in _by_kind(image) for index, one in mine.items() if kind.spared(one)}


def first_slot(image: Tree) -> int:
    """The lowest number for descriptors that a restore opens.

    It is above all numbers in the image, also those that an epoll remembers. If this process may not have so many
    descriptors, it is among them.
    """
    above = _highest(image) + 1
    return above if above + _needed(image) <= _most() else STDIO + 1


def _most() -> int:
    """How many descriptors this process may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _highest(image: Tree) -> int:
    numbers = [entry.fd for process in image.processes for entry in process.fds]
    numbers += [watch.fd for one in image.descriptions for watch in one.epoll.watches]
    return max(numbers, default=STDIO)


def _needed(image: Tree) -> int:
    """The maximal number of descriptors that are open at once."""
    mapped = len(image.files) + len(image.shared) + len(mapped_both_ways(image))
    return len(image.descriptions) + len(image.ptys) + mapped + SPARE


def _validate_numbers(image: Tree) -> Iterator[Reason]:
    known = {kind.field: kind for kind in KINDS if kind.field}
    for index, description in enumerate(image.descriptions):
        kind = known.get(description.WhichOneof("kind") or "")
        if kind is None:
            yield Reason("the image", f"description {index} is of a kind that this version does not know")
            continue
        cannot_be = ~(KNOWN_FLAGS | (O_TMPFILE if kind.field == MemoryDescriptor.field else 0))
        if not kind.is_opened and not description.HasField("outside"):
            cannot_be |= os.O_SYNC
        if description.flags & cannot_be:
            yield Reason("the image", f"description {index} has invalid flags: {description.flags:#o}")
    for process in image.processes:
        numbers = [entry.fd for entry in process.fds]
        if len(set(numbers)) != len(numbers):
            yield Reason("the image", f"process {process.pid} has two descriptors with one number")
        for entry in process.fds:
            if entry.description >= len(image.descriptions):
                yield Reason(
                    "the image",
                    f"process {process.pid}, fd {entry.fd} leads to description {entry.description}",
                )
    needed = max(_highest(image) + 1 + _RINGS, len(os.listdir("/proc/self/fd")) + _needed(image))
    if needed > _most():
        yield Reason(
            "the descriptors of the image",
            f"{needed} are needed at once to restore them, and this process may have {_most()}",
            "raise the hard limit (ulimit -Hn)",
        )

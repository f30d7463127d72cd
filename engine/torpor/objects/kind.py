"""What all kinds of open file descriptions have in common, when they are dumped and when they are restored.

An *open file description* is what ``open()`` makes in the kernel (open(2)): flags and a position.
Descriptors of any number of processes may lead to one, by ``dup`` and by ``fork``, and share its position.
The image therefore holds each description once, and for every process the descriptors that lead to it.

Each kind is one class with its dump beside its restore:

==========  ========================================================================================
`grab`      under the freeze: take a state that can change, no more
`judge`     say why it cannot be kept; before the freeze, and once more after it on what was grabbed
`describe`  put it into the image, while the tree runs again
`check`     before a restore touches anything: say why this host cannot give it back
`open`      make it again in the restoring process
==========  ========================================================================================
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from itertools import islice
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.paths.fingerprints import mapped_to_write
from torpor.objects.paths.opener import Opener, Openers
from torpor.objects.paths.small_files import SmallFiles
from torpor.procfs import Stat
from torpor.remote.freeze import describe_process
from torpor.remote.sys import syscall

S = TypeVar("S")

# include/uapi/asm-generic/fcntl.h, where Python's os module has no name for it
O_LARGEFILE = 0o100000
"""Its file never had a name."""

KEPT_AT_OPEN = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH
"""Status flags that only ``open()`` can give."""
KEPT_BY_LINK = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC
"""Those of them that count where what is open is opened once more, by its link in /proc/self/fd."""
KEPT_BY_FCNTL = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
"""Status flags that F_SETFL can give (fs/fcntl.c: SETFL_MASK, without O_ASYNC)."""
O_ASYNC = 0o20000
"""Given by F_SETFL, too: see `torpor.objects.fds.signal_owners`."""
KNOWN_FLAGS = KEPT_AT_OPEN | KEPT_BY_FCNTL | O_LARGEFILE | O_ASYNC

OF_A_PROCESS = re.compile(rb"/proc/(\d+|self|thread-self)(/|$)")
"""Names whose content is a process as it is: never opened for an image, which could name the restorer's own memory."""

"""Names of files whose content the kernel makes up when it is read."""

_LEASE = re.compile(rb"^lock:\t\d+: LEASE ", re.M)

STDIO = 2
"""The last of the descriptors that a restorer gives: 0, 1 and 2."""


class FdReference(NamedTuple):
    """A descriptor: where a description is reached."""

    pid: int
    fd: int


class SignalOwner(NamedTuple):
    """Who is sent a signal when a description is ready; see `torpor.objects.fds.signal_owners`."""

    kind: int
    """F_OWNER_*."""
    pid: int
    """0: it has ended, or there is none."""
    signal: int
    """0: SIGIO."""
    process: int = 0
    """Of a thread: the PID of its process, as this process sees it."""
    number: int = 0
    """Of a thread: its TID in its own PID namespace."""


class Family(NamedTuple):
    """What a socket is: sockets of one family have the same options, with the same defaults."""

    family: int
    type: int
    protocol: int


class Seen(NamedTuple):
    """What tells a description's kind."""

    link: str
    """What /proc/PID/fd/N leads to: a path, or ``pipe:[4711]``."""
    stat: os.stat_result
    family: Family | None
    """Of a socket."""


class Problem(NamedTuple):
    """Why a description cannot be kept, and what to do about it."""

    why: str
    advice: str = ""
    passing: bool = False
    """Whether it may be over in a moment by itself: a message that is to be read, say."""


@dataclass(eq=False)
class OpenFile(Generic[S]):
    """An open file description of a tree (open(2)), as it was found."""

    kind: Kind[S]
    link: str
    """What /proc/PID/fd/N leads to: a path, or ``pipe:[4711]``."""
    stat: os.stat_result
    flags: int
    """As by F_GETFL."""
    info: bytes
    """/proc/PID/fdinfo/N (Documentation/filesystems/proc.rst, 3.8)."""
    holders: list[FdReference] = field(default_factory=list)
    """Every descriptor of the tree that leads to it; those of parents before those of their children."""
    stdio: list[int] = field(default_factory=list)
    """Under which of 0, 1 and 2 the first process that has it there has it."""
    under_way_to: OpenFile[Any] | None = None
    """The socket in whose queue it lies, when no process has it."""
    ours: FileIO | None = None
    """A file of our own on memory that lies in a socket's queue: its content is still to be taken."""
    owner: SignalOwner | None = None
    """Who gets its signals; not asked of directories, nor of files on a network."""
    _stdio_pid: int = 0
    state: S = field(init=False)

    @cached_property
    def fields(self) -> dict[str, str]:
        """The lines of fdinfo; of a name that comes more than once, the last."""
        pairs = (line.partition(":") for line in self.info.decode().splitlines())
        return {name: value.strip() for name, _, value in pairs}

    @property
    def position(self) -> int:
        """The file position."""
        return int(self.fields["pos"])

    @property
    def leased(self) -> bool:
        """Whether somebody is told when its file is opened (F_SETLEASE)."""
        return _LEASE.search(self.info) is not None

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def access(self) -> int:
        """What its file had to allow, in the words of access(2). The mode 3 asks for both, and gives neither."""
        mode = self.flags & os.O_ACCMODE
        return (os.R_OK if mode != os.O_WRONLY else 0) | (os.W_OK if mode != os.O_RDONLY else 0)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    def add(self, holder: FdReference) -> None:
        """Note one more descriptor that leads to it."""
        if holder.fd <= STDIO and (not self.stdio or holder.pid == self._stdio_pid):
            self._stdio_pid = holder.pid
            self.stdio.append(holder.fd)
        self.holders.append(holder)


@dataclass
class InFlight:
    """A descriptor that lies in a socket's queue (SCM_RIGHTS)."""

    fd: int
    """Our copy of it, while the tree is grabbed."""
    held: OpenFile[Any] | None = None
    """What it leads to."""


@dataclass
class GrabbedDescriptors:
    """All descriptors of a tree, as they were at one moment."""

    pids: list[int]
    """Parents before their children."""
    held: list[OpenFile[Any]] = field(default_factory=list)
    by_holder: dict[FdReference, OpenFile[Any]] = field(default_factory=dict)
    """The description behind each descriptor."""
    cloexec: set[FdReference] = field(default_factory=set)
    """The descriptors that an execve() closes."""
    locked: dict[FdReference, list[bytes]] = field(default_factory=dict)
    """What fdinfo says of locks and leases. POSIX locks are a process's own."""
    lease_signals: dict[int, int] = field(default_factory=dict)
    """By id() of a `OpenFile` with a lease, the signal that tells of its breaking (F_GETSIG)."""
    terminals: Mapping[int, Stat] = field(default_factory=dict)
    """By PID what tells a process's session, controlling terminal and groups."""
    content: bool = True
    """Whether what lies in pipes and sockets was taken too. Not before the freeze: there one only looks."""
    reset_outside: bool = False
    """Whether sockets whose peer is outside of the tree are kept, as ones whose peer has closed."""
    given: Set[FdReference] | None = None
    """None: the tree is saved. Else it has just been built: which descriptors are the restorer's own standard input,
    output and error. What files hold is not taken then: it was judged before."""
    small: SmallFiles | None = None
    """The files whose content was taken with the memory, once that is done."""
    stand_ins: Mapping[int, int] = field(default_factory=dict)
    """By PID: who may be asked instead where a tree that runs again has its directories and networks; it may end."""
    _kinds: dict[type[Kind[Any]], list[OpenFile[Any]]] = field(default_factory=dict)
    _sorted: int = 0
    """How many of `held` are in `_kinds`."""

    def asked(self, pid: int) -> int:
        """The PID under which /proc tells of a process, also when that has ended since the freeze."""
        return self.stand_ins.get(pid, pid)

    @cached_property
    def inherited(self) -> dict[tuple[int, int], list[int]]:
        """By device and inode: under which of 0, 1 and 2 the processes above the tree have it."""
        found: dict[tuple[int, int], list[int]] = {}
        # The first one that has ended, or is not this user's, ends the search.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for pid in islice(procfs.ancestry(self.pids[0]), 1, None):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    if (number := int(name)) <= STDIO:
                        status = os.stat(f"/proc/{pid}/fd/{name}")
                        found.setdefault((status.st_dev, status.st_ino), []).append(number)
        return found

    def of(self, kind: type[Kind[S]]) -> list[OpenFile[S]]:
        """The descriptions of one kind."""
        if self._sorted < len(self.held):  # more were found since
            self._kinds, self._sorted = {}, len(self.held)
        # Every socket asks for the others: with thousands a search each time would take minutes.
        if kind not in self._kinds:
            self._kinds[kind] = [held for held in self.held if isinstance(held.kind, kind)]
        return self._kinds[kind]

    def is_given(self, held: OpenFile[Any]) -> bool:
        """Whether it is one of the restorer's own, whatever that is."""
        return self.given is not None and held.holders[0] in self.given

    def stdio(self, held: OpenFile[Any], fd: int) -> int | None:
        """Which of the restorer's 0, 1 and 2 stands in for descriptor `fd`; None when `held` is made anew.

        A terminal is often one description behind 0, 1 and 2. Where the tree is woken these may be three
        different things, so each number gets its own. A copy of one of them (``dup``) goes where output goes
        if it can be written.
        """
        if self.is_given(held):
            return 0
        if not held.kind.outside(held, self):
            return None
        numbers = held.kind.stands_for(held, self)
        if fd in numbers:
            return fd
        return next((n for n in (1, 2) if n in numbers and held.writable), numbers[0]) if numbers else None


@dataclass
class Opening:
    """A restore's descriptions while they are being made."""

    image: Tree
    stdio: Sequence[int]
    """The restorer's descriptors that stand in for 0, 1 and 2."""
    shared: Callable[[int], int]
    """Gives a descriptor of shared memory by its index in the image. It stays whose it is."""
    base: int
    """No descriptor of the image has this number or a higher one."""
    openers: Openers
    """Who opens paths for each description."""
    slots: dict[int, int] = field(default_factory=dict)
    """The descriptor that keeps each description of the image."""
    terminals: dict[int, int] = field(default_factory=dict)
    """Descriptors of the terminals that sessions have, by their index in the image."""
    making: int = 0
    """The index of the description that is being made."""
    warnings: list[str] = field(default_factory=list)
    """What is not as it was, in words."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """What is to be done when all descriptions are there."""
    stack: ExitStack = field(default_factory=ExitStack)
    """What is needed until then."""
    to_watch: list[Callable[[], None]] = field(default_factory=list)
    """What is to be done when all names are as they are to be."""
    when_built: list[Callable[[], None]] = field(default_factory=list)
    """What is to be done when the tree stands, once or more often."""
    at_last: list[Callable[[], None]] = field(default_factory=list)
    """What is to be done when the tree is let go."""

    @property
    def opener(self) -> Opener:
        """Opens paths for the description that is being made."""
        return self.openers.description(self.making)

    def keep_terminal(self, index: int, fd: int) -> None:
        """Keep a copy of `fd` for the sessions whose controlling terminal is `index`."""
        self.terminals[index] = fcntl.fcntl(fd, fcntl.F_DUPFD, self.base)

    def place(self, index: int, fd: int) -> None:
        """Keep `fd` as description `index`, give it its flags, and take it over.

        Raises:
            RestoreFailed: the kernel did not take the flags.
        """
        try:
            self.slots[index] = fcntl.fcntl(fd, fcntl.F_DUPFD, self.base)
        finally:
            os.close(fd)
        self._set_flags(self.image.descriptions[index], self.slots[index])

    def socket(self, index: int) -> socket.socket:
        """Another descriptor of a socket that was placed; whoever asks closes it."""
        return socket.socket(fileno=os.dup(self.slots[index]))

    def _set_flags(self, description: Description, slot: int) -> None:
        # Of what was given the rest is for those to choose who gave it.
        mask = os.O_NONBLOCK if description.HasField("outside") else KEPT_BY_FCNTL | KEPT_BY_LINK
        if description.flags & os.O_PATH:
            return
        now = fcntl.fcntl(slot, fcntl.F_GETFL)
        wanted = now & ~mask | description.flags & mask
        if wanted != now:
            fcntl.fcntl(slot, fcntl.F_SETFL, wanted)
        if fcntl.fcntl(slot, fcntl.F_GETFL) & mask != wanted & mask:
            raise RestoreFailed(
                f"{words(description)} cannot have its status flags {wanted & mask:#o} again: the kernel made"
                f" {now & mask:#o} of them"
            )


class Kind(ABC, Generic[S]):
    """A kind of open file description."""

    field: ClassVar[str]
    """Its name in the image: a field of Description's oneof."""
    may_be_under_way: ClassVar[bool] = False
    """Whether one that no process has, as it lies in a socket's queue, can be kept: after `finish` nothing is asked of
    its holders any more."""
    may_be_reset: ClassVar[bool] = False
    """Whether one that leads outside of the tree can come back as one whose peer has closed."""
    is_opened: ClassVar[bool] = False
    """Whether it is made by a call that takes status flags which fcntl(2) does not (O_SYNC, O_DSYNC)."""
    look_takes: ClassVar[bool] = False
    """Whether a look at what waits in it may take it from the next: not done to a tree that is only compared."""

    @abstractmethod
    def matches(self, seen: Seen) -> bool:
        """Whether a description is of this kind."""

    @abstractmethod
    def grab(self, held: OpenFile[S], pidfd: int, *, content: bool) -> S:
        """Take what may change once the tree runs again. Time is short: no parsing, no disk.

        Args:
            held: the description, with its first holder.
            pidfd: that holder's process.
            content: also take what lies in it.
        """

    def under_way(self, held: OpenFile[S]) -> Sequence[InFlight]:
        """The descriptors that lie in it; who asks closes the copies."""
        return ()

    def finish(self, mine: list[OpenFile[S]], tree: GrabbedDescriptors) -> None:
        """Take, still under the freeze, what needs to know the whole tree."""

    def outside(self, held: OpenFile[S], tree: GrabbedDescriptors) -> str:
        """What it is connected to outside the tree, in words; empty when it stands by itself."""
        return ""

    def stands_for(self, held: OpenFile[S], tree: GrabbedDescriptors) -> list[int]:
        """The numbers of standard input, output and error that a description to the outside is one of.

        A program may have put a copy aside when it replaced the original (``exec 3>&1 >log``; ipykernel). It is known
        by the processes above the tree, from which the program has it.
        """
        numbers = tree.inherited.get((held.stat.st_dev, held.stat.st_ino), [])
        return held.stdio or sorted({n for n in numbers if (held.writable if n else held.readable)})

    def judge(self, held: OpenFile[S], tree: GrabbedDescriptors) -> Iterator[Problem]:
        """Say why it cannot be kept."""
        return iter(())

    @abstractmethod
    def describe(self, held: OpenFile[S], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Put it into the image: everything but the flags, which are in `out` already."""

    def notices(self, mine: Sequence[OpenFile[S]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Say what of these a restore will not bring back as it was: a sentence each."""
        return iter(())

    def check(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """Say why this host cannot make these descriptions again."""
        return iter(())

    def check_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """Say what of it somebody else has here and now, as a port or a name.

        Asked of what `check` finds nothing against, and not while the tree itself still lives, which has all of it.
        """
        return iter(())

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make these descriptions again, each kept by `Opening.place`.

        Raises:
            RestoreFailed: it cannot be done, with the reason.
        """
        for index, description in mine.items():
            opening.making = index
            with naming(description):
                opening.place(index, self.make(description, opening))

    def make(self, description: Description, opening: Opening) -> int:
        """Make one description again: a descriptor. Kinds that make several at once have `open` instead."""
        raise NotImplementedError


@dataclass
class Describing:
    """The image's descriptions while they are being written."""

    tree: Tree
    index: dict[tuple[int, int | None], int]
    """By id() of a `OpenFile` and the number in stdio that it stands for."""
    grabbed: GrabbedDescriptors
    shared: Callable[[int, int], int]
    """The index in Tree.shared of the memory with this device and inode."""
    pipes: dict[tuple[int, int], int] = field(default_factory=dict)
    """The index in Tree.pipes of a pipe by its device and inode."""
    ptys: dict[int, int] = field(default_factory=dict)
    """The index in Tree.ptys of a terminal by its device number."""

    @cached_property
    def mapped_to_write(self) -> set[tuple[int, int]]:
        """See `torpor.objects.paths.fingerprints`."""
        return mapped_to_write(self.tree)

    def index_of(self, held: OpenFile[Any], fd: int = -1) -> int:
        """The index in Tree.descriptions of what a descriptor with the number `fd` leads to."""
        return self.index[id(held), self.grabbed.stdio(held, fd)]


@contextmanager
def naming(description: Description) -> Iterator[None]:
    """Turn what the kernel refused into an error that says for which description."""
    try:
        yield
    except OSError as error:
        raise RestoreFailed(f"{words(description)} cannot be made again: {error.strerror}") from error
    except (ValueError, OverflowError) as error:  # a number or a name that no system call takes
        raise RestoreFailed(f"{words(description)} cannot be made again: {error}") from error


@contextmanager
def borrowed(pidfd: int, fd: int) -> Iterator[int]:
    """A copy of a process's descriptor, closed again at the end: a pipe's end that is kept delays its EOF."""
    copy = syscall(NR.pidfd_getfd, pidfd, fd)
    try:
        yield copy
    finally:
        os.close(copy)


def reopened(fd: int, flags: int) -> int:
    """Another description of an open file; closes `fd`. No name is used again: nothing can be swapped."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(fd)


def words(description: Description) -> str:
    """A description of an image, for people: ``the file /home/me/log``."""
    kind = description.WhichOneof("kind")
    path = getattr(getattr(description, kind or "", None), "path", None)
    names = {"device": "device", "outside": "descriptor", "unix": "unix socket", "tcp": "TCP socket"}
    name = "the " + names.get(kind or "", kind or "unknown description")
    return f"{name} {os.fsdecode(path)}" if path else name


def name(holder: FdReference) -> str:
    """A descriptor, for people: ``process 4711 (python), fd 5``."""
    return f"{describe_process(holder.pid)}, fd {holder.fd}"


def some(names: Sequence[str], most: int = 3) -> str:
    """A few of many names, in words: ``a, b, c and 14 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_path(held: OpenFile[Any]) -> bool:
    """Whether it was opened with O_PATH: a name for a file, nothing that can be read."""
    return bool(held.flags & os.O_PATH)


def why_not_by_name(held: OpenFile[Any], tree: GrabbedDescriptors) -> str:
    """Why this user cannot open the same file again by its name, here and now; empty when that is possible.

    The name is looked up as a process sees it that has the file: in a capsule /proc is another one.
    """
    root = f"/proc/{tree.asked(held.holders[0].pid)}/root" if held.holders else ""
    name = root + held.link if root and os.readlink(root) == "/" else held.link
    try:
        found = os.stat(name)
    except OSError as error:
        return error.strerror or str(error)
    if (found.st_dev, found.st_ino) != (held.stat.st_dev, held.stat.st_ino):
        return "another file has the name, or the process sees other file systems"
    if not is_path(held) and not os.access(name, held.access, effective_ids=True):
        return "this user may not"
    return ""

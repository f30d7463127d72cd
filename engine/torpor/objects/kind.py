"""The protocol for a kind of open file descriptions, and what is found of them at a dump.

``open()`` makes an *open file description* in the kernel (open(2)): flags and a file position. Descriptors in several
processes may refer to one, by ``dup`` and by ``fork``, and share its position. So the image holds each description
once, and for every process the descriptors that refer to it.

Each kind is one class, with its dump beside its restore:

=============  =====================================================================================
`grab`         under the freeze: copy only the state that can change
`unsupported`  say why it cannot be kept: before the freeze, and again for what was grabbed
`describe`     write it to the image, while the tree runs again
`validate`     before a restore changes anything: say why this host cannot restore it
`open`         make it again in the restoring process: `torpor.objects.opening`
=============  =====================================================================================
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from itertools import islice
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torpor import procfs
from torpor.errors import Reason
from torpor.image.image_pb2 import Description, FileRef, Tree
from torpor.objects.opening import Opening, naming
from torpor.objects.paths.fingerprints import mapped_to_write
from torpor.objects.paths.small_files import SmallFiles
from torpor.probe import probe
from torpor.procfs import Stat
from torpor.remote.batch import Ask
from torpor.remote.copies import copy_of, descriptor_of
from torpor.remote.naming import describe_process

S = TypeVar("S")

OF_A_PROCESS = re.compile(rb"/proc/(\d+|self|thread-self)(/|$)")
"""Names of files that show a process. They are never opened for an image: it could name the restorer's own memory."""

_LEASE = re.compile(rb"^lock:\t\d+: LEASE ", re.M)

STDIO = 2
"""The last of the descriptors 0, 1 and 2, which the restorer provides."""


class FdReference(NamedTuple):
    """A descriptor of a process, which refers to an open file description."""

    pid: int
    fd: int


class SignalOwner(NamedTuple):
    """Who gets a signal when a description is ready; see `torpor.objects.fds.signal_owners`."""

    kind: int
    """F_OWNER_*."""
    pid: int
    """0 if the owner has ended, or there is none."""
    signal: int
    """0 means SIGIO."""
    process: int = 0
    """If the owner is a thread: the PID of its process in our PID namespace."""
    number: int = 0
    """If the owner is a thread: its TID in its own PID namespace."""


class Family(NamedTuple):
    """The type of a socket: sockets of one type have the same options with the same defaults."""

    family: int
    type: int
    protocol: int


class Seen(NamedTuple):
    """What identifies the kind of a description."""

    link: str
    """The target of the link /proc/PID/fd/N: a path, or ``pipe:[4711]``."""
    stat: os.stat_result
    family: Family | None
    """Only for sockets."""
    queue: bool = False
    """Whether it is a POSIX message queue: a regular file by all that stat(2) tells."""


class Unsupported(NamedTuple):
    """Why a description cannot be kept, and what the user can do."""

    why: str
    advice: str = ""
    passing: bool = False
    """Whether it may resolve itself in a moment, such as a message that will be read."""


@dataclass(eq=False)
class OpenFile(Generic[S]):
    """An open file description of a tree (open(2)), as it was found."""

    kind: Kind[S]
    link: str
    """The target of the link /proc/PID/fd/N: a path, or ``pipe:[4711]``."""
    stat: os.stat_result
    flags: int
    """As returned by F_GETFL."""
    info: bytes
    """/proc/PID/fdinfo/N (Documentation/filesystems/proc.rst, 3.8)."""
    references: list[FdReference] = field(default_factory=list)
    """Every descriptor of the tree that refers to it; those of parents come first."""
    stdio: list[int] = field(default_factory=list)
    """Which of 0, 1 and 2 refer to it in the first process that has it there."""
    under_way_to: OpenFile[Any] | None = None
    """If no process has it: the socket in whose queue it is."""
    ours: FileIO | None = None
    """For a file in memory that is in a socket's queue: our descriptor of it, by which its content is read later."""
    owner: SignalOwner | None = None
    """Who gets its signals; not read for directories and for files on a network."""
    _stdio_pid: int = 0
    state: S = field(init=False)

    @cached_property
    def fields(self) -> dict[str, str]:
        """The fields of fdinfo; for a repeated field the last one."""
        pairs = (line.partition(":") for line in self.info.decode().splitlines())
        return {name: value.strip() for name, _, value in pairs}

    @property
    def position(self) -> int:
        """The file position."""
        return int(self.fields["pos"])

    @property
    def leased(self) -> bool:
        """Whether its file has a lease (F_SETLEASE)."""
        return _LEASE.search(self.info) is not None

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def access(self) -> int:
        """The rights that it needed on the file, as in access(2). Access mode 3 asks for both and allows neither."""
        mode = self.flags & os.O_ACCMODE
        return (os.R_OK if mode != os.O_WRONLY else 0) | (os.W_OK if mode != os.O_RDONLY else 0)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    def add(self, holder: FdReference) -> None:
        """Add a descriptor that refers to it."""
        if holder.fd <= STDIO and (not self.stdio or holder.pid == self._stdio_pid):
            self._stdio_pid = holder.pid
            self.stdio.append(holder.fd)
        self.references.append(holder)


@dataclass
class InFlight:
    """A descriptor in a socket's queue (SCM_RIGHTS)."""

    fd: int
    """Our copy of it, during the grab."""
    open_file: OpenFile[Any] | None = None
    """The description that it refers to."""


class Built(NamedTuple):
    """What `grab` must know of a tree that a restore has just built."""

    given: set[FdReference]
    """The descriptors that are the restorer's own standard input, output and error."""
    spared: set[FdReference]
    """Those whose content is not to be looked at: see `Kind.spared`."""
    in_memory: dict[bytes, FileRef]
    """Mapped files that may have come back in memory (see `torpor.objects.paths.bundle`), by their names in maps."""


@dataclass
class GrabbedDescriptors:
    """All descriptors of a tree at one moment."""

    pids: list[int]
    """Parents before their children."""
    open_files: list[OpenFile[Any]] = field(default_factory=list)
    by_reference: dict[FdReference, OpenFile[Any]] = field(default_factory=dict)
    """The description of each descriptor."""
    cloexec: set[FdReference] = field(default_factory=set)
    """The close-on-exec descriptors."""
    locked: dict[FdReference, list[bytes]] = field(default_factory=dict)
    """The lines on locks and leases in fdinfo. POSIX locks belong to a process."""
    lease_signals: dict[int, int] = field(default_factory=dict)
    """For each `OpenFile` with a lease, by its id(): the signal that reports a lease break (F_GETSIG)."""
    terminals: Mapping[int, Stat] = field(default_factory=dict)
    """The stat of each PID, which has its session, controlling terminal and process group."""
    content: bool = True
    """Whether the content of pipes and sockets was taken too. A look before the freeze does not take it."""
    reset_outside: bool = False
    """Whether sockets with a peer outside of the tree are kept, as sockets whose peer has closed."""
    built: Built | None = None
    """None if the tree is being saved. If it was just restored, the content of files is not taken: it was checked
    before.
    """
    small: SmallFiles | None = None
    """Files whose content was taken with the memory, once that is done."""
    sharing: set[int] = field(default_factory=set)
    """Processes whose table of descriptors is their parent's (CLONE_FILES), and is looked at there."""
    stand_ins: Mapping[int, int] = field(default_factory=dict)
    """For a PID, another process with the same directories and networks, which /proc can show once the tree runs again
    and the first may have ended.
    """
    _kinds: dict[type[Kind[Any]], list[OpenFile[Any]]] = field(default_factory=dict)
    _sorted: int = 0
    """How many of `open_files` are in `_kinds`."""

    def asked(self, pid: int) -> int:
        """The PID to use in /proc for a process, which may have ended since the freeze."""
        return self.stand_ins.get(pid, pid)

    @cached_property
    def inherited(self) -> dict[tuple[int, int], list[int]]:
        """What the ancestors of the tree have as 0, 1 and 2: these numbers by device and inode."""
        found: dict[tuple[int, int], list[int]] = {}
        # Stop at the first ancestor that has ended or belongs to another user.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for pid in islice(procfs.ancestry(self.pids[0]), 1, None):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    if (number := int(name)) <= STDIO:
                        status = os.stat(f"/proc/{pid}/fd/{name}")
                        found.setdefault((status.st_dev, status.st_ino), []).append(number)
        return found

    def of(self, kind: type[Kind[S]]) -> list[OpenFile[S]]:
        """The descriptions of one kind."""
        if self._sorted < len(self.open_files):  # more were found since the last call
            self._kinds, self._sorted = {}, len(self.open_files)
        # Every socket asks for the others: with thousands of them, searching each time would take minutes.
        if kind not in self._kinds:
            self._kinds[kind] = [open_file for open_file in self.open_files if isinstance(open_file.kind, kind)]
        return self._kinds[kind]

    def is_given(self, open_file: OpenFile[Any]) -> bool:
        """Whether it is one of the restorer's own descriptions, of whatever kind."""
        return self.built is not None and open_file.references[0] in self.built.given

    def stdio(self, open_file: OpenFile[Any], fd: int) -> int | None:
        """Which of the restorer's 0, 1 and 2 replaces descriptor `fd`; None if `open_file` is made again.

        A terminal is often one description behind 0, 1 and 2. After the wake these may be three different descriptions,
        so each number gets its own. A copy of one of them (``dup``) goes where output goes, if it is writable.
        """
        if self.is_given(open_file):
            return 0
        if not open_file.kind.outside(open_file, self):
            return None
        numbers = open_file.kind.stands_for(open_file, self)
        if fd in numbers:
            return fd
        return next((n for n in (1, 2) if n in numbers and open_file.writable), numbers[0]) if numbers else None


class Kind(ABC, Generic[S]):
    """A kind of open file description."""

    field: ClassVar[str]
    """Its name in the image: a field of the oneof in Description."""
    may_be_under_way: ClassVar[bool] = False
    """Whether it can be kept if no process has it and it is in a socket's queue: then after `finish` nothing may need
    its holders.
    """
    may_be_reset: ClassVar[bool] = False
    """Whether one that is connected to the outside can come back as if its peer had closed."""
    is_opened: ClassVar[bool] = False
    """Whether the call that makes it accepts status flags that F_SETFL cannot set (O_SYNC, O_DSYNC)."""

    @abstractmethod
    def matches(self, seen: Seen) -> bool:
        """Whether a description is of this kind."""

    @abstractmethod
    def grab(self, open_file: OpenFile[S], pidfd: int, *, content: bool) -> S:
        """Copy the state that can change once the tree runs again. Time is short: no parsing, no disk.

        Args:
            open_file: the description, with its first descriptor.
            pidfd: the process of that descriptor.
            content: also copy its content.
        """

    def under_way(self, open_file: OpenFile[S]) -> Sequence[InFlight]:
        """The descriptors in its queue; the caller closes the copies."""
        return ()

    def finish(self, mine: list[OpenFile[S]], tree: GrabbedDescriptors) -> None:
        """Copy, still under the freeze, state that depends on the whole tree."""

    def ask(self, mine: Sequence[OpenFile[S]], tree: GrabbedDescriptors, ask: Mapping[int, Ask]) -> None:
        """Have frozen processes make calls, for state that our copy of a descriptor does not show.

        `ask` has, by PID, a function that lets the process make a batch of calls.
        """

    def outside(self, open_file: OpenFile[S], tree: GrabbedDescriptors) -> str:
        """What outside of the tree it is connected to, for messages; empty if nothing."""
        return ""

    def unread(self, open_file: OpenFile[S]) -> int:
        """How many bytes it has received that the program has not read; asked of ends that lead outside."""
        return 0

    def only_one(self, open_file: OpenFile[S]) -> str:
        """What of it can exist only once on a host, for messages: ``its port``. Empty if nothing."""
        return ""

    def stands_for(self, open_file: OpenFile[S], tree: GrabbedDescriptors) -> list[int]:
        """The numbers of standard input, output and error that a description to the outside may be.

        A program may have kept a copy when it replaced the original (``exec 3>&1 >log``; ipykernel). The copy is
        recognized by the ancestors of the tree, which passed the original on.
        """
        numbers = tree.inherited.get((open_file.stat.st_dev, open_file.stat.st_ino), [])
        return open_file.stdio or sorted({n for n in numbers if (open_file.writable if n else open_file.readable)})

    def unsupported(self, open_file: OpenFile[S], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Say why it cannot be kept."""
        return iter(())

    @abstractmethod
    def describe(self, open_file: OpenFile[S], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Write it to the image: everything but the flags, which are in `out` already."""

    def notices(self, mine: Sequence[OpenFile[S]], tree: GrabbedDescriptors) -> Iterator[str]:
        """Say what a restore will not bring back as it was: one sentence each."""
        return iter(())

    def spared(self, description: Description) -> bool:
        """Whether a restore must not look at its content to compare it with the image, once it has made it."""
        return False

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """Say why this host cannot make these descriptions again."""
        return iter(())

    def validate_free(self, mine: dict[int, Description], image: Tree) -> Iterator[Reason]:
        """Say which resources of it, such as a port or a name, another process has on this host.

        Called if `validate` finds nothing. Not called while the tree itself still lives, since it has all of them.
        """
        return iter(())

    def open(self, mine: dict[int, Description], opening: Opening) -> None:
        """Make these descriptions again, and store each with `Opening.place`.

        Raises:
            RestoreFailed: with the reason.
        """
        for index, description in mine.items():
            opening.making = index
            with naming(description):
                opening.place(index, self.make(description, opening))

    def make(self, description: Description, opening: Opening) -> int:
        """Make one description again; returns a descriptor. Kinds that make several at once override `open` instead."""
        raise NotImplementedError


@dataclass
class Describing:
    """The image's descriptions while they are being written."""

    tree: Tree
    index: dict[tuple[int, int | None], int]
    """By the id() of an `OpenFile` and the standard descriptor that it stands for."""
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

    def index_of(self, open_file: OpenFile[Any], fd: int = -1) -> int:
        """The index in Tree.descriptions of the description that a descriptor with the number `fd` refers to."""
        return self.index[id(open_file), self.grabbed.stdio(open_file, fd)]


@contextmanager
def borrowed(pidfd: int, fd: int) -> Iterator[int]:
    """A copy of a process's descriptor, closed again at the end: a kept copy of a pipe's end would delay its EOF."""
    copy = copy_of(pidfd, fd)
    try:
        yield copy
    finally:
        os.close(copy)


def copy_unless_ended(holder: FdReference) -> int | None:
    """A copy of a descriptor of a frozen process; the caller closes it.

    None if another process has killed it meanwhile: it stays as a zombie, whose descriptors are closed. Or if this host
    lets nobody take one.

    Raises:
        OSError: the kernel gives none.
    """
    try:
        return descriptor_of(*holder)
    except OSError:
        if procfs.is_ending(holder.pid, holder.pid) or not probe().pidfd_getfd:
            return None
        raise


def descriptor_name(holder: FdReference) -> str:
    """A descriptor for messages: ``process 4711 (python), fd 5``."""
    return f"{describe_process(holder.pid)}, fd {holder.fd}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """A few of many names for messages: ``a, b, c and 14 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_path(open_file: OpenFile[Any]) -> bool:
    """Whether it was opened with O_PATH: it only locates a file and cannot be read."""
    return bool(open_file.flags & os.O_PATH)


def why_not_by_name(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> str:
    """Why this user cannot open the same file by its name again, here and now; empty if that is possible.

    The name is resolved as a process of the tree sees it: in a capsule, /proc is another one.
    """
    root = f"/proc/{tree.asked(open_file.references[0].pid)}/root" if open_file.references else ""
    name = root + open_file.link if root and os.readlink(root) == "/" else open_file.link
    try:
        found = os.stat(name)
    except OSError as error:
        return error.strerror or str(error)
    if (found.st_dev, found.st_ino) != (open_file.stat.st_dev, open_file.stat.st_ino):
        return "another file has the name, or the process sees other file systems"
    if not is_path(open_file) and not os.access(name, open_file.access, effective_ids=True):
        return "this user may not"
    return ""

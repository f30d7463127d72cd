"""The protocol for a part of the state of a process, a thread or a whole tree, with its dump beside its restore.

A part is a class in the module of its kind of object, and a line in `torpor.objects.registry`. The dump and the restore
both walk through the registry:

===============  ===================================================================================
`preflight`      before the freeze: say what of it cannot be kept
`ask`            under the freeze: add the calls that only the process or the thread itself can make
`unsupported`    say what cannot be kept that only these calls have shown
`describe`       write it to the image, while the tree runs again
`validate_form`  before a restore: say what in the image no checkpoint would have written
`validate`       say why this host or this user cannot restore it
`host`           query once the properties of this host on which its calls depend
`calls`          the system calls that restore it, each with the stage in which it is made
`warnings`       say what will not be as before
===============  ===================================================================================

A part of a tree, which its processes share, is asked for with `ask` too, and then read with `grab` while they can make
more calls. `by_init` are the calls of a restore before there is any process.

`torpor.objects.process.timers` is a short example, and `torpor.objects.sysv.message_queues` one for a tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torpor.arch.x86_64 import Portable
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.process.texts import Texts
from torpor.remote.batch import Batch, Call, Replies
from torpor.remote.freeze import Thread

A = TypeVar("A")
"""The result of `ask`: the entries of the batch."""
G = TypeVar("G")
"""The result of `grab`."""
H = TypeVar("H")
"""The result of `host`."""


class Stage(Enum):
    """When a call of a restore is made, and by which thread."""

    BIRTH = auto()
    """The first calls of a process, before it has children."""
    PROCESS = auto()
    """The first thread, when its memory is restored."""
    THREAD = auto()
    """Each thread, with the restorer's credentials."""
    ALL_THREADS = auto()
    """The first thread, when all threads exist."""
    BEFORE_CREDENTIALS = auto()
    """Each thread: its last calls with the restorer's credentials."""
    CREDENTIALS = auto()
    """Each thread: sets its credentials."""
    AFTER_CREDENTIALS = auto()
    """Each thread: settings that a change of credentials would reset."""
    RELEASE = auto()
    """Each thread, by the `syscall` in its vDSO: settings that would disturb the int3 of the restorer's tables."""


class Step(NamedTuple):
    """A call of a restore."""

    stage: Stage
    call: Call


class Answers(NamedTuple):
    """What was read of a process under the freeze."""

    texts: Texts
    replies: Replies
    """Of the thread that makes the process's calls."""
    pending: Sequence[bytes]
    """The siginfo_t of each signal that is pending for the whole process."""
    own_tids: Mapping[int, int]
    """Its threads' ids in our PID namespace, mapped to those in their own."""


@dataclass(frozen=True)
class Filter:
    """A seccomp filter as it was installed."""

    code: bytes
    flags: int


@dataclass
class ThreadAnswers:
    """What was read of a thread under the freeze."""

    thread: Thread
    registers: Portable
    xstate: bytes
    rseq: tuple[int, int, int, int]
    """Pointer, size, signature, flags."""
    pending: Sequence[bytes]
    """The siginfo_t of each signal that is pending for this thread."""
    filters: Sequence[Filter]
    """The filters that it does not share with Torpor."""
    replies: Replies


class ProcessPart(ABC, Generic[A, H]):
    """A part of the state that all threads of a process share."""

    def preflight(self, pid: int, status: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
        """Before the freeze: say why it cannot be kept, and what to do. `status` is /proc/PID/status."""
        return iter(())

    @abstractmethod
    def ask(self, batch: Batch, texts: Texts) -> A:
        """Add calls to the batch of the first thread, for what only the process itself can query."""

    def unsupported(self, asked: A, answers: Answers) -> Iterator[str]:
        """Say why it cannot be kept, as far as only these calls have shown."""
        return iter(())

    @abstractmethod
    def describe(self, asked: A, answers: Answers, out: pb.Process) -> None:
        """Write it to the image."""

    def validate_form(self, process: pb.Process) -> Iterator[str]:
        """Say what in an image no checkpoint would have written."""
        return iter(())

    def validate(self, name: str, process: pb.Process) -> Iterator[Reason]:
        """Say why this host or this user cannot restore it. `name` is the process, for messages."""
        return iter(())

    @abstractmethod
    def host(self) -> H:
        """Query what `calls` and `warnings` depend on: properties of this process and its host."""

    def calls(self, process: pb.Process, host: H) -> Iterator[Step]:
        """The calls that restore it."""
        return iter(())

    def warnings(self, process: pb.Process, host: H) -> Iterator[str]:
        """What will not be as before, for the user."""
        return iter(())


class ThreadPart(ABC, Generic[A, H]):
    """A part of the state that each thread has for itself."""

    def preflight(self, tid: int) -> Iterator[str]:
        """Before the freeze: say why it cannot be kept."""
        return iter(())

    @abstractmethod
    def ask(self, batch: Batch) -> A:
        """Add calls to the batch of each thread, for what only the thread itself can query."""

    def unsupported(self, asked: A, replies: Replies) -> Iterator[str]:
        """Say why it cannot be kept, as far as only these calls have shown."""
        return iter(())

    @abstractmethod
    def describe(self, asked: A, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree) -> None:
        """Write it to the image; the first thread of a process comes first."""

    def validate_form(self, thread: pb.Thread) -> Iterator[str]:
        """Say what in an image no checkpoint would have written."""
        return iter(())

    @abstractmethod
    def host(self) -> H:
        """Query what `calls` and `warnings` depend on: properties of this process and its host."""

    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: H) -> Iterator[Step]:
        """The calls that restore it."""
        return iter(())

    def warnings(self, thread: pb.Thread, host: H) -> Iterator[str]:
        """What will not be as before, for the user."""
        return iter(())


class Entered(Protocol):
    """A frozen process of a tree. Its threads can be made to run system calls."""

    @property
    def pid(self) -> int:
        """The PID in our PID namespace."""

    @property
    def own_pid(self) -> int:
        """The PID in the tree's PID namespace."""

    @property
    def name(self) -> str:
        """The process's name for messages."""

    @property
    def tids(self) -> Sequence[int]:
        """Its threads' ids in our PID namespace, the main thread first."""

    def ask(self, batch: Batch, tid: int | None = None) -> Replies:
        """Let a thread make calls; None: the one that makes the process's calls."""

    def asked(self, part: TreePart[A, Any, Any]) -> A | None:
        """The result of `TreePart.ask`; None if there was nothing to ask."""

    def replies(self, tid: int) -> Replies:
        """What a thread's calls of the first batch returned."""

    def calls(self) -> Iterator[tuple[int, int]]:
        """The system call in which each thread was stopped, with its first argument."""


class EnteredTree(NamedTuple):
    """A frozen tree. Its threads can be made to run system calls."""

    processes: Sequence[Entered]
    """Its living processes, the root first."""
    pids: Sequence[int]
    """All its processes, zombies too, the root first."""


class TreePart(ABC, Generic[A, G, H]):
    """A part of the state that the processes of a tree share."""

    def preflight(self, pids: Sequence[int]) -> Iterator[Reason]:
        """Before the freeze: say why it cannot be kept. `pids` are all processes, zombies too, the root first."""
        return iter(())

    def may_have(self, uids: frozenset[int]) -> bool:
        """Whether processes with these user ids can have any of it; those that cannot are not asked."""
        return True

    def ask(self, batch: Batch) -> A | None:
        """Add calls to the batch of each thread. They come first: so far it has only calls of other tree parts."""
        return None

    @abstractmethod
    def grab(self, tree: EnteredTree) -> G:
        """Read it under the freeze, with more calls of the processes."""

    def unsupported(self, grabbed: G) -> Iterator[Reason]:
        """Say what of it cannot be kept, as far as only these calls have shown."""
        return iter(())

    @abstractmethod
    def describe(self, grabbed: G, image: pb.Tree, own_pids: Mapping[int, int], root: int) -> None:
        """Write it to the image, which has all the rest.

        Args:
            grabbed: what `grab` returned.
            image: the tree.
            own_pids: the PIDs in the image, by those in our PID namespace.
            root: the PID whose /proc to read for the first process: its own, or its snapshot's, as it may have ended.
        """

    def unsupported_relations(self, image: pb.Tree) -> Iterator[Reason]:
        """Say what in the described tree no restore can build."""
        return iter(())

    def validate_form(self, image: pb.Tree) -> Iterator[str]:
        """Say what in an image no checkpoint would have written."""
        return iter(())

    def validate(self, image: pb.Tree) -> Iterator[Reason]:
        """Say why this host or this user cannot restore it."""
        return iter(())

    def needs_ipc_namespace(self, image: pb.Tree) -> bool:
        """Whether the tree must be restored into an IPC namespace of its own."""
        return False

    @abstractmethod
    def host(self) -> H:
        """Query what the calls depend on: properties of this process and its host."""

    def by_init(self, image: pb.Tree, host: H, *, owner: bool) -> Iterator[list[Call]]:
        """The calls that init makes before it creates any process, each list in a table of its own.

        Args:
            image: the tree.
            host: what `host` returned.
            owner: whether the image's user ids are set.
        """
        return iter(())

    def calls(self, process: pb.Process, image: pb.Tree, host: H, *, owner: bool) -> Iterator[Step]:
        """The calls of each process, with the stage BIRTH or ALL_THREADS."""
        return iter(())

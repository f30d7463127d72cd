"""A part of the state of a process or of a thread: its dump and its restore side by side, in one protocol.

A part is a class in the module of its kind of object, and a line in `torpor.objects.registry`, through which both
stories walk:

=============  =====================================================================================
`preflight`    nothing is frozen yet: say what of it cannot be kept
`ask`          under the freeze: add the calls that only the process or the thread itself can make
`unsupported`  say what cannot be kept of what only the answers tell
`describe`     put it into the image, while the tree runs again
`faults`       before a restore: say what is not as a checkpoint writes it
`check`        say why this host, or this user, cannot give it back
`host`         look once at what its calls depend on here
`calls`        the system calls that give it back, each with the stage at which it comes
`warnings`     say what will not be as it was
=============  =====================================================================================

`torpor.objects.process.timers` is a short example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

from torpor.arch.x86_64 import Portable
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.process.texts import Texts
from torpor.remote.batch import Batch, Call, Replies
from torpor.remote.freeze import Thread

A = TypeVar("A")
"""What `ask` gives: the entries of the batch."""
H = TypeVar("H")
"""What `host` gives."""


class Stage(Enum):
    """When a call of a restore comes, and who makes it."""

    PROCESS = auto()
    """The first thread, when its memory is there."""
    THREAD = auto()
    """Each thread, with the restorer's rights."""
    ALL_THREADS = auto()
    """The first thread, when all threads are there."""
    BEFORE_CREDENTIALS = auto()
    """Each thread: the last with the restorer's rights."""
    CREDENTIALS = auto()
    """Each thread: what takes these rights away."""
    AFTER_CREDENTIALS = auto()
    """Each thread: what a change of credentials would undo."""
    RELEASE = auto()
    """Each thread, by the `syscall` in its vDSO: what would disturb the builder's int3."""


class Step(NamedTuple):
    """A call of a restore."""

    stage: Stage
    call: Call


class Answers(NamedTuple):
    """What was taken of a process under the freeze."""

    texts: Texts
    replies: Replies
    """Of the thread that speaks for the process."""
    pending: Sequence[bytes]
    """The siginfo_t of each signal that waits for the process as a whole."""
    own_tids: Mapping[int, int]
    """Its threads as this process sees them, with their ids in their own PID namespace."""


@dataclass(frozen=True)
class Filter:
    """A system-call filter (seccomp) as it was installed."""

    code: bytes
    flags: int


@dataclass
class ThreadAnswers:
    """What was taken of a thread under the freeze."""

    thread: Thread
    registers: Portable
    xstate: bytes
    rseq: tuple[int, int, int, int]
    """Pointer, size, signature, flags."""
    pending: Sequence[bytes]
    """The siginfo_t of each signal that waits for this thread."""
    filters: Sequence[Filter]
    """Those that it does not share with Torpor."""
    replies: Replies


class ProcessPart(ABC, Generic[A, H]):
    """A part of the state that all threads of a process have in common."""

    def preflight(self, pid: int, status: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
        """Why it cannot be kept, and what to do; nothing is frozen. `status` is /proc/PID/status."""
        return iter(())

    @abstractmethod
    def ask(self, batch: Batch, texts: Texts) -> A:
        """Add what only the process itself can be asked to the batch of its first thread."""

    def unsupported(self, asked: A, answers: Answers) -> Iterator[str]:
        """Why it cannot be kept, as far as only the process could tell."""
        return iter(())

    @abstractmethod
    def describe(self, asked: A, answers: Answers, out: pb.Process) -> None:
        """Put it into the image."""

    def faults(self, process: pb.Process) -> Iterator[str]:
        """What of an image is not as a checkpoint writes it."""
        return iter(())

    def check(self, name: str, process: pb.Process) -> Iterator[Reason]:
        """Why this host, or this user, cannot give it back. `name` is the process, for people."""
        return iter(())

    @abstractmethod
    def host(self) -> H:
        """What `calls` and `warnings` depend on, of this process and its host."""

    @abstractmethod
    def calls(self, process: pb.Process, host: H) -> Iterator[Step]:
        """What gives it back."""

    def warnings(self, process: pb.Process, host: H) -> Iterator[str]:
        """What will not be as it was, in words."""
        return iter(())


class ThreadPart(ABC, Generic[A, H]):
    """A part of the state that each thread has of its own."""

    def preflight(self, tid: int) -> Iterator[str]:
        """Why it cannot be kept; nothing is frozen."""
        return iter(())

    @abstractmethod
    def ask(self, batch: Batch) -> A:
        """Add what only the thread itself can be asked to the batch of each thread."""

    def unsupported(self, asked: A, replies: Replies) -> Iterator[str]:
        """Why it cannot be kept, as far as only the thread could tell."""
        return iter(())

    @abstractmethod
    def describe(self, asked: A, answers: ThreadAnswers, out: pb.Thread, process: pb.Process, image: pb.Tree) -> None:
        """Put it into the image; the process's first thread comes first."""

    def faults(self, thread: pb.Thread) -> Iterator[str]:
        """What of an image is not as a checkpoint writes it."""
        return iter(())

    @abstractmethod
    def host(self) -> H:
        """What `calls` and `warnings` depend on, of this process and its host."""

    @abstractmethod
    def calls(self, thread: pb.Thread, process: pb.Process, image: pb.Tree, host: H) -> Iterator[Step]:
        """What gives it back."""

    def warnings(self, thread: pb.Thread, host: H) -> Iterator[str]:
        """What will not be as it was, in words."""
        return iter(())

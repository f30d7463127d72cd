"""Resource limits of a process.

Kept: soft and hard limits, as far as the restorer may set them.

Documented in: getrlimit(2), proc_pid_limits(5).
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator, Sequence

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Answers, ProcessPart, Stage, Step
from torpor.objects.process.texts import Texts
from torpor.remote.batch import Batch, Call

# Names in /proc/PID/limits, in the order of the RLIMIT_ numbers (fs/proc/base.c, lnames).
LIMIT_NAMES = (
    b"Max cpu time", b"Max file size", b"Max data size", b"Max stack size", b"Max core file size",
    b"Max resident set", b"Max processes", b"Max open files", b"Max locked memory", b"Max address space",
    b"Max file locks", b"Max pending signals", b"Max msgqueue size", b"Max nice priority",
    b"Max realtime priority", b"Max realtime timeout",
)  # fmt: skip
UNLIMITED = (1 << 64) - 1
OF_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK)
_LIMIT = struct.Struct("<QQ")


def widening(hard: Sequence[int]) -> Iterator[Call]:
    """Raise the limits on memory as far as the restorer may: its own soft limits may be too low to build the process.
    `hard` are the restorer's hard limits, by number.
    """
    for number in OF_MEMORY:
        words = f"raising the limit {LIMIT_NAMES[number].decode()}"
        yield Call(NR.prlimit64, (0, number, _LIMIT.pack(hard[number], hard[number]), 0), 0, words)


class Limits(ProcessPart[None, tuple[int, ...]]):
    """All resource limits."""

    def ask(self, batch: Batch, texts: Texts) -> None:
        """No calls: the texts have them."""

    def describe(self, asked: None, answers: Answers, out: pb.Process) -> None:
        """From /proc/PID/limits."""
        for line in answers.texts.limits.splitlines()[1:]:
            number = next(k for k, name in enumerate(LIMIT_NAMES) if line.startswith(name))
            soft, hard = (_limit(word) for word in line[len(LIMIT_NAMES[number]) :].split()[:2])
            out.limits.add(resource=number, soft=soft, hard=hard)

    def validate_form(self, process: pb.Process) -> Iterator[str]:
        """A limit that this version does not know."""
        if any(limit.resource >= len(LIMIT_NAMES) for limit in process.limits):
            yield "it has a resource limit that this version does not know"

    def host(self) -> tuple[int, ...]:
        """The restorer's own hard limits, by number."""
        return tuple(resource.getrlimit(number)[1] & UNLIMITED for number in range(len(LIMIT_NAMES)))

    def calls(self, process: pb.Process, host: tuple[int, ...]) -> Iterator[Step]:
        """Set after everything else of the process: the calls before may need more."""
        for limit in process.limits:
            hard = min(limit.hard, host[limit.resource])
            content = _LIMIT.pack(min(limit.soft, hard), hard)
            words = f"setting the limit {LIMIT_NAMES[limit.resource].decode()}"
            yield Step(Stage.ALL_THREADS, Call(NR.prlimit64, (0, limit.resource, content, 0), 0, words))

    def warnings(self, process: pb.Process, host: tuple[int, ...]) -> Iterator[str]:
        """Limits that are lower than they were."""
        for limit in process.limits:
            what, hard = LIMIT_NAMES[limit.resource].decode().removeprefix("Max "), host[limit.resource]
            if limit.hard > hard:
                which = "limit" if limit.soft > hard else "hard limit"
                yield f"its {which} of {what} is lower than it was: yours is {hard}"


def _limit(word: bytes) -> int:
    return UNLIMITED if word == b"unlimited" else int(word)

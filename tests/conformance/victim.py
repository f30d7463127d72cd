"""A victim of faults (victims): a program that sees for itself that each thread goes on, and finds all as it was."""

from __future__ import annotations

import mmap
import re
import signal
import struct
from contextlib import suppress

from tests.conformance import observe
from tests.conformance.harness import GO, PATIENCE, Failed, Subject, belonging, wait_until

_WORKERS = 8
_PROCESS = struct.Struct(f"={_WORKERS}Q192s")


class Victim:
    """A victim's progress, seen through the file it maps."""

    def __init__(self, subject: Subject, processes: int) -> None:
        self.subject = subject
        self.processes = processes
        with open(subject.directory / "progress", "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _counters(self) -> list[int]:
        found: list[int] = []
        for number in range(self.processes):
            *counters, fault = _PROCESS.unpack_from(self._memory, 8 + number * _PROCESS.size)
            if text := fault.rstrip(b"\0").decode(errors="backslashreplace"):
                raise Failed(f"the victim's process {number}: {text}")
            found += counters
        return found

    def runs_on(self, seconds: float = PATIENCE) -> None:
        """Every worker of every process gets on, and none has found a fault."""
        before = self._counters()

        def further() -> bool:
            return all(now > then for now, then in zip(self._counters(), before, strict=True))

        try:
            wait_until(further, "every worker to get on", seconds)
        except Failed as failure:
            lagging = [k for k, (now, then) in enumerate(zip(self._counters(), before, strict=True)) if now == then]
            raise Failed(f"{failure}; not: {lagging}\n{self.subject.picture()}") from None

    def is_clean(self, before: dict[int, observe.Process]) -> int:
        """Nothing of ours is left in it; returns how many windows stayed mapped, which are allowed.

        When a dumper was killed, its snapshot ends and a thread returns from our calls to its own in a moment.
        """
        top = self.subject.root()
        tree = set(observe.descendants(top))
        ours = tree | ({self.subject.process.pid} if self.subject.process else set())
        wait_until(lambda: ours.issuperset(belonging(self.subject.directory)), "the end of the dumper's snapshot")
        left: tuple[int, list[str]] = 0, []

        def as_before() -> bool:
            nonlocal left
            with suppress(FileNotFoundError, ProcessLookupError):  # what has just ended
                left = _left(before, observe.observe(top))
                return not left[1] and observe.status(top)["TracerPid"] == "0"
            return False

        try:
            wait_until(as_before, "the victim to be as it was")
        except Failed as failure:
            raise Failed("\n".join([str(failure), *left[1]])) from None
        return left[0]


def _left(before: dict[int, observe.Process], after: dict[int, observe.Process]) -> tuple[int, list[str]]:
    """How many windows are mapped that were not, and what else differs."""
    windows = 0
    for pid in before.keys() & after.keys():
        process = after[pid]
        new = [line for line in process.mappings if line not in before[pid].mappings]
        kept = [line for line in new if not re.search(r" rwxp 0 {2}\[", line)]
        windows += len(new) - len(kept)
        process.mappings = tuple(line for line in process.mappings if line not in new or line in kept)
        for tid in process.threads.keys() & before[pid].threads.keys():
            if _mask(process.threads[tid]) == _mask(was := before[pid].threads[tid]):
                process.threads[tid] = was
    return windows, observe.differences(before, after)


def _mask(thread: observe.Thread) -> int:
    """The signals that a thread blocks, but for those that come and go as it waits for them; these it checks itself."""
    return int(thread.status["SigBlk"], 16) & ~sum(1 << (number - 1) for number in (GO, signal.SIGRTMIN + 9))

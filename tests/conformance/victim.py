"""A victim of faults (victims): a program that sees for itself that each thread goes on, and finds all as it was."""

from __future__ import annotations

import mmap
import re
import struct

from tests.conformance import observe
from tests.conformance.harness import PATIENCE, Failed, Subject, belonging, wait_until

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
            if text := fault.rstrip(b"\0").decode():
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
        """Nothing of ours is left in it; returns how many windows stayed mapped, which are allowed."""
        top = self.subject.root()
        tree = set(observe.descendants(top))
        ours = tree | ({self.subject.process.pid} if self.subject.process else set())
        wait_until(lambda: ours.issuperset(belonging(self.subject.directory)), "the end of the dumper's snapshot")
        windows = 0
        after = observe.observe(top)
        for pid, process in after.items():
            assert observe.status(top)["TracerPid"] == "0"
            new = [line for line in process.mappings if line not in before[pid].mappings]
            kept = [line for line in new if not re.search(r" rwxp 0 {2}\[", line)]
            windows += len(new) - len(kept)
            process.mappings = tuple(line for line in process.mappings if line not in new or line in kept)
            # The mask of the worker that waits for signals comes and goes; it checks it itself.
            process.threads = before[pid].threads
        if changed := observe.differences(before, after):
            raise Failed("the victim is not as it was:\n" + "\n".join(changed))
        return windows

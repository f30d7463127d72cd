"""What test_huge_pages.py has a user do: a series of checkpoints of a program whose memory is in huge pages.

Runs as its own process, as the user whose rights are tested. Prints "done", or "unavailable" where the host has none.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import torpor
from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.remote.written import SPARED_LOOKS
from torpor.store import Store

SIZE = 16 << 20
PROGRAM = f"""
import mmap, sys
MADV_COLLAPSE = 25
memory = mmap.mmap(-1, {SIZE + (4 << 20)}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
def write(value):
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = value
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(error, flush=True)
"""


@dataclass
class Program:
    """A program that evaluates what it is told."""

    process: subprocess.Popen[str]

    def tell(self, expression: str) -> str:
        """What it answers."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def huge(self) -> bool:
        """Whether its memory is in huge pages."""
        lines = (line.split() for line in procfs.read(f"/proc/{self.process.pid}/smaps_rollup").splitlines())
        return next(int(words[1]) << 10 for words in lines if words[0] == b"AnonHugePages:") >= SIZE


def pages_with(store: Store, snapshot: torpor.Snapshot, value: int) -> int:
    """How many pages of the snapshot begin with a byte and have nothing else."""
    wanted = bytes([value]) + bytes(procfs.PAGE - 1)
    count = 0
    with store.open(snapshot) as reader:
        table = pb.Tree.FromString(reader.body).processes[0].memory.pages
        for _, size, block, skip in pieces(table):
            content = reader.read_block(block)[skip * procfs.PAGE :]
            count += sum(content[k * procfs.PAGE :][: procfs.PAGE] == wanted for k in range(size))
    return count


def watch(program: Program) -> str:
    """Take checkpoints of it, and look at its huge pages before and after each."""
    store = Store("store")
    program.tell("write(1)")
    if not program.huge():
        return "unavailable"
    value = 1
    with torpor.Series() as series:

        def save() -> None:
            info = torpor.checkpoint(program.process.pid, store=store, series=series)
            assert pages_with(store, info, value) >= SIZE // procfs.PAGE, f"the content is not {value}"

        save()
        assert program.huge(), "the first checkpoint took them away"
        program.tell(f"write({(value := 2)})")  # which makes them small, as what is written is to be noted
        if program.tell("memory.madvise(MADV_COLLAPSE)") != "None":  # what khugepaged does in its time
            return "unavailable"
        assert program.huge()
        for _ in range(SPARED_LOOKS):
            save()
            program.tell(f"write({(value := value + 1)})")
            assert program.huge(), f"they are gone after {value} was written"
        save()  # it is time to see whether they are still written
        save()
        assert program.huge(), "they are gone without a write"
    program.tell(f"write({(value := 100)})")
    assert program.tell("memory.madvise(MADV_COLLAPSE)") == "None"
    assert program.huge(), "they cannot come back when the series is closed"
    return "done"


def main() -> None:
    """Start it, and end it."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            print(watch(Program(process)))
        finally:
            process.kill()


if __name__ == "__main__":
    main()

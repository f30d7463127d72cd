"""What test_series.py has a user do: checkpoints of one program, as a series and each by itself, and a comparison.

Runs as its own process, as the user whose rights are tested. Prints "done"; anything that is not as it should be
ends it with a traceback.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torpor
from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.store import Store

Table = dict[int, tuple[int, bytes]]
"""By its first page: how many pages a block has, and its hash."""


@contextmanager
def mutator(program: str) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    """The program that changes its memory, and its counter of rounds."""
    # Without restartable sequences: the kernel itself writes the processor's number into each thread's.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
    process = subprocess.Popen([program, "rounds"], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not Path("rounds").exists() or not Path("rounds").stat().st_size:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        with open("rounds", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as rounds:
            yield process, rounds
    finally:
        with suppress(ProcessLookupError):  # the last checkpoint has killed it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_on(rounds: mmap.mmap, count: int) -> None:
    """Let it make some rounds."""
    wanted = struct.unpack_from("<Q", rounds)[0] + count
    deadline = time.monotonic() + 60
    while struct.unpack_from("<Q", rounds)[0] < wanted:
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.0005)


def pages(store: Store, snapshot: torpor.Snapshot) -> tuple[list[Table], int]:
    """The page tables of a snapshot's processes, and their pages in all."""
    with store.open(snapshot) as reader:
        image = pb.Tree.FromString(reader.body)
        hashes = reader.blocks.hash
        tables = [
            {
                start: (count, hashes(block))
                for start, count, block in zip(table.starts, table.counts, table.blocks, strict=True)
            }
            for table in (process.memory.pages for process in image.processes)
        ]
    for table, process in zip(tables, image.processes, strict=True):
        assert list(table) == sorted(process.memory.pages.starts), "a page table is not by address"
    return tables, sum(count for table in tables for count, _ in table.values())


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop it, and its child if it has one."""
    os.killpg(process.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 20
    while not all(map(at_rest, [process.pid, *procfs.children(process.pid, [process.pid])])):
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.0005)


def at_rest(pid: int) -> bool:
    """Whether a process is stopped, or has ended."""
    return procfs.stat(pid).state in ("T", "Z")


def same_as_by_itself(program: str, times: int, seed: str) -> None:
    """What a series keeps is what a single checkpoint keeps of the same moment."""
    chance = random.Random(seed)
    together, alone = Store("together"), Store("alone")
    spared = 0
    with mutator(program) as (process, rounds), torpor.Series() as series:
        for number in range(times):
            run_on(rounds, chance.choice((1, 3, 10, 100)))
            stop(process)
            one = torpor.checkpoint(process.pid, store=together, series=series)
            other = torpor.checkpoint(process.pid, store=alone)
            (kept, count), (wanted, _) = pages(together, one), pages(alone, other)
            assert kept == wanted, f"{seed}: snapshot {number} differs: {differences(kept, wanted)}"
            os.killpg(process.pid, signal.SIGCONT)
            spared += count * procfs.PAGE > one.written
            if chance.random() < 0.1:
                fail(process.pid, series)
            if chance.random() < 0.1:
                series.close()
        final = torpor.checkpoint(process.pid, store=together, series=series, then="kill")
    assert spared > times / 2, "nothing was spared"
    assert not together.verify()
    job = torpor.restore(final, store=together)
    with open("rounds", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as rounds:
        run_on(rounds, 10)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()


def fail(pid: int, series: torpor.Series) -> None:
    """A checkpoint that looks at what was written and then comes to nothing."""

    def give_up(_done: int, _all: int) -> None:
        raise RuntimeError("given up")

    try:
        torpor.checkpoint(pid, store="together", series=series, progress=give_up)
    except RuntimeError:
        return
    raise AssertionError("it was not given up")


def differences(kept: list[Table], wanted: list[Table]) -> str:
    """Where page tables differ, for people."""
    found = []
    for one, other in zip(kept, wanted, strict=True):
        found += [hex(start * procfs.PAGE) for start in one.keys() | other.keys() if one.get(start) != other.get(start)]
    return f"{len(found)} blocks, {sorted(found)[:8]}"


if __name__ == "__main__":
    same_as_by_itself(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print("done")

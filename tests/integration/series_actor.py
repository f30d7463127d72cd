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

from blake3 import blake3

import torpor
from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.store import KnownBlocks, Store

Table = dict[int, bytes]
"""Hashes by page number."""
MOST_PACKS = 6
"""So few that a short series comes to have more."""
AHEAD = 30
"""Rounds that the program makes at most while it is not stopped yet."""


@contextmanager
def mutator(program: str) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    """The program that changes its memory, and its counter of rounds."""
    # Without restartable sequences: the kernel itself writes the processor's number into each thread's. And without
    # AVX: whether its registers count as in use, which the frame below a stack says, is the processor's to choose.
    tunables = "glibc.pthread.rseq=0:glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL"
    environment = {**os.environ, "GLIBC_TUNABLES": tunables}
    process = subprocess.Popen([program, "rounds"], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 100
        while not Path("rounds").exists() or not Path("rounds").stat().st_size:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        with open("rounds", "r+b") as file, mmap.mmap(file.fileno(), 0) as rounds:
            yield process, rounds
    finally:
        with suppress(ProcessLookupError):  # the last checkpoint has killed it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_on(rounds: mmap.mmap, count: int) -> None:
    """Let it make some rounds, and a few more until somebody stops it."""
    wanted = struct.unpack_from("<Q", rounds)[0] + count
    struct.pack_into("<Q", rounds, 8, wanted + AHEAD)
    deadline = time.monotonic() + 100
    while struct.unpack_from("<Q", rounds)[0] < wanted:
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.0005)


def pages(store: Store, snapshot: torpor.Snapshot) -> list[Table]:
    """For each process of a snapshot the hash of each page, by page number."""
    tables: list[Table] = []
    with store.open(snapshot) as reader:
        image = pb.Tree.FromString(reader.body)
        for process in image.processes:
            rows = process.memory.pages
            assert list(rows.starts) == sorted(rows.starts), "a page table is not by address"
            table: Table = {}
            for start, count, block, skip in pieces(rows):
                content = reader.read_block(block)[skip * procfs.PAGE :]
                assert len(content) >= count * procfs.PAGE
                for k in range(count):
                    assert start + k not in table, "a page is in two blocks"
                    table[start + k] = blake3(content[k * procfs.PAGE : (k + 1) * procfs.PAGE]).digest()
            tables.append(table)
    return tables


def stop(pid: int) -> None:
    """Stop it, and its child if it has one."""
    os.killpg(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 100
    while not all(map(at_rest, [pid, *procfs.children(pid, [pid])])):
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.0005)


def at_rest(pid: int) -> bool:
    """Whether a process is stopped, or has ended."""
    try:
        return procfs.stat(pid).state in ("T", "Z")
    except (FileNotFoundError, ProcessLookupError):  # its parent had not stopped yet, and has waited for it
        return True


def same_as_by_itself(program: str, times: int, seed: str) -> None:
    """What a series keeps is what a single checkpoint keeps of the same moment."""
    chance = random.Random(seed)
    KnownBlocks.MOST_PACKS = MOST_PACKS
    together, alone = Store("together"), Store("alone")
    spared = 0
    with mutator(program) as (process, rounds), torpor.Series() as series:
        for number in range(times):
            run_on(rounds, chance.choice((1, 3, 10, 100)))
            stop(process.pid)
            one, _, size = both(process.pid, together, alone, series, f"{seed}: snapshot {number}")
            os.killpg(process.pid, signal.SIGCONT)
            assert len(one.packs) <= MOST_PACKS + 1, f"{seed}: snapshot {number} has {len(one.packs)} packs"
            spared += size > one.written
            if chance.random() < 0.1:
                fail(process.pid, series)
            if chance.random() < 0.1:
                series.close()
            if chance.random() < 0.3:
                # What the series remembers is worth nothing then: another snapshot needs a part of its pack only.
                run_on(rounds, 10)
                torpor.checkpoint(process.pid, store=together)
                together.remove(one.id)
            elif chance.random() < 0.3:
                together.remove(chance.choice(together.ids()))
        final = torpor.checkpoint(process.pid, store=together, series=series, then="kill")
    assert spared > times / 2, "nothing was spared"
    assert not together.verify()
    goes_on(final, together, alone)


def both(
    pid: int, together: Store, alone: Store, series: torpor.Series, name: str
) -> tuple[torpor.Snapshot, torpor.Snapshot, int]:
    """Checkpoints of a stopped tree, in the series and by itself, that keep the same; and the bytes of its pages."""
    one = torpor.checkpoint(pid, store=together, series=series)
    other = torpor.checkpoint(pid, store=alone)
    kept, wanted = pages(together, one), pages(alone, other)
    assert kept == wanted, f"{name} differs: {differences(kept, wanted)}"
    return one, other, sum(map(len, kept)) * procfs.PAGE


def goes_on(final: torpor.Snapshot, together: Store, alone: Store) -> None:
    """A series that begins with a restore keeps what a single checkpoint keeps, too."""
    with torpor.Series() as series:
        job = torpor.restore(final, store=together, series=series, prove=True)
        try:
            with open("rounds", "r+b") as file, mmap.mmap(file.fileno(), 0) as rounds:
                spared = 0
                for number in range(3):
                    run_on(rounds, 3)
                    stop(job.tree_pid)
                    one, other, size = both(job.pid, together, alone, series, f"woken, snapshot {number}")
                    os.killpg(job.tree_pid, signal.SIGCONT)
                    spared += size > one.written + other.written
                assert spared, "nothing was spared"
        finally:
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
    """Which pages differ, for people."""
    found = []
    for one, other in zip(kept, wanted, strict=True):
        for page in sorted(one.keys() | other.keys()):
            if one.get(page) != other.get(page):
                sides = (
                    "another content" if page in one and page in other else "only kept" if page in one else "missing"
                )
                found.append(f"{page * procfs.PAGE:#x} ({sides})")
    return f"{len(found)} pages: {', '.join(found[:8])}"


if __name__ == "__main__":
    same_as_by_itself(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print("done")

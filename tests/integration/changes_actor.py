"""What test_changes.py has a user do: a program does random things to its memory, a series of checkpoints is taken of
it, and what each keeps is compared with what is there.

Runs as its own process, as the user whose rights are tested. Arguments: the program, a seed, the kind of the process,
how many rounds. Prints "done" at the end; anything that is not as it should be ends it with a traceback.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torpor
from torpor import procfs
from torpor.dump.process_dump import ProcessDump
from torpor.dump.series import Series
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.store import SnapshotReader, Store

NOTHING = bytes(PAGE)
AREAS = range(0x200000000000, 0x300000000000)
"""Where the program has nothing that it would fall over."""
MOMENTS = (
    (Series, "look"),
    (ProcessDump, "begin_snapshot"),
    (ProcessDump, "finish_snapshot"),
    (ProcessDump, "leave"),
)
"""Before and after each of these somebody else writes into the frozen tree."""


class Somebody:
    """Another process that writes into the tree's memory (process_vm_writev) while it is frozen."""

    def __init__(self, pid: int, chance: random.Random) -> None:
        self._pid = pid
        self._chance = chance
        self.pages: set[int] = set()
        """Addresses of pages that it has written in this round."""

    def write(self) -> None:
        """Write a word somewhere."""
        writable = [m for m in procfs.mappings(self._pid) if m.perms == b"rw-p" and m.start in AREAS]
        if not writable:
            return
        mapping = self._chance.choice(writable)
        address = self._chance.randrange(mapping.start, mapping.end, 8)
        try:
            memory.write(self._pid, address, self._chance.randbytes(8))
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return  # a guard, or behind the end of a file
        self.pages.add(address // PAGE * PAGE)

    def at(self, owner: type, name: str) -> Callable[[], None]:
        """Write before and after each call of a method; gives what ends that."""
        method = getattr(owner, name)

        def around(*args: Any, **options: Any) -> Any:
            self.write()
            result = method(*args, **options)
            self.write()
            return result

        setattr(owner, name, around)
        return lambda: setattr(owner, name, method)


def content(reader: SnapshotReader, table: pb.PageTable) -> dict[int, bytes]:
    """The pages in a table, by number."""
    found: dict[int, bytes] = {}
    for start, count, block, skip in pieces(table):
        whole = reader.read_block(block)[skip * PAGE :]
        for k in range(count):
            assert start + k not in found, "a page is in two blocks"
            found[start + k] = bytes(whole[k * PAGE : (k + 1) * PAGE])
    return found


def differences(reader: SnapshotReader, pid: int, spared: set[int]) -> list[str]:
    """Where what a snapshot keeps of its first process is not what that has."""
    image = pb.Tree.FromString(reader.body)
    space = image.processes[0].memory
    own = content(reader, space.pages)
    shared = [content(reader, one.pages) for one in image.shared]
    guards = {
        start + k for start, count in zip(space.guards.starts, space.guards.counts, strict=True) for k in range(count)
    }
    found: list[str] = []
    real = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for vma in space.vmas:
        file = os.open(image.files[vma.file].path, os.O_RDONLY) if vma.kind == pb.Vma.FILE_PRIVATE else -1
        for address in range(vma.start, vma.end, PAGE):
            page, offset = address // PAGE, vma.offset + address - vma.start
            if address in spared or page in guards or vma.kind == pb.Vma.FILE_SHARED:
                continue
            if vma.kind == pb.Vma.SHARED:
                kept = shared[vma.shared].get(offset // PAGE, NOTHING)
            elif page in own:
                kept = own[page]
            else:
                kept = os.pread(file, PAGE, offset) if file >= 0 else NOTHING
            try:
                there = os.pread(real, PAGE, address)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                there = b""  # behind the end of its file
            if kept.ljust(PAGE, b"\0") != there and (there or page in own):
                how = "stored" if page in own else "not stored"
                how += ", another content" if there else ", not there"
                found.append(f"{address:#x} ({how}) in {pb.Vma.Kind.Name(vma.kind)} {vma.start:#x}-{vma.end:#x}")
        if file >= 0:
            os.close(file)
    os.close(real)
    return found


def judge(pid: int, store: Store, snapshot: torpor.Snapshot, name: str, spared: set[int]) -> None:
    """Fail if a snapshot is not what is there."""
    with store.open(snapshot) as reader:
        wrong = differences(reader, pid, spared)
    assert not wrong, f"{name}: {len(wrong)} pages differ: {', '.join(wrong[:8])}"


def main(program: str, seed: str, kind: str, rounds: int) -> None:
    """Take checkpoints of one program, of all kinds, and look at each."""
    chance = random.Random(f"{seed} {kind}")
    counts: Counter[str] = Counter()
    store = Store("store")
    job = subprocess.Popen(
        ["setarch", "-R", program, seed, kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
    )  # fmt: skip
    assert job.stdin and job.stdout
    somebody = Somebody(job.pid, chance)
    try:
        with torpor.Series() as series:
            for number in range(rounds):
                job.stdin.write(f"{chance.choice((1, 2, 5, 20, 60))}\n")
                job.stdin.flush()
                assert job.stdout.readline() == "done\n", f"round {number}: the program ended with {job.wait()}"
                act = chance.choice(
                    ("run", "run", "run", "run", "disturbed", "disturbed", "stop", "stop", "other", "fail", "single")
                )
                until_it_waits(job.pid)
                name = f"seed {seed}, {kind}, round {number}, {act}"
                counts[act] += 1
                one_round(job.pid, store, series, act, name, somebody, chance)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    assert not store.verify()
    print(dict(counts), file=sys.stderr)


def one_round(
    pid: int, store: Store, series: Series, act: str, name: str, somebody: Somebody, chance: random.Random
) -> None:
    """One checkpoint, and what is to be seen of it."""
    if act == "fail":
        with suppress(RuntimeError):
            torpor.checkpoint(pid, store=store, series=series, progress=give_up)
        return
    if act == "other":  # another dumper's
        with torpor.Series() as others:
            torpor.checkpoint(pid, store=store, series=others)
            torpor.checkpoint(pid, store=store, series=others)
        return
    if act == "single":  # of which the series knows nothing; its watch goes on
        one = torpor.checkpoint(pid, store=store, then="stop")
        judge(pid, store, one, name, set())
        os.killpg(pid, signal.SIGCONT)
        return
    somebody.pages.clear()
    ends = [somebody.at(*chance.choice(MOMENTS))] if act == "disturbed" else []
    try:
        one = torpor.checkpoint(pid, store=store, series=series, then="stop" if act == "stop" else "run")
    finally:
        for end in ends:
            end()
    # Whoever reads a page may change what the kernel has noted of it: so not each is looked at.
    if chance.random() < 0.5:
        judge(pid, store, one, name, somebody.pages)
    if act == "stop":
        os.killpg(pid, signal.SIGCONT)


def until_it_waits(pid: int) -> None:
    """Until the program is back in read(2) after what it has said."""
    deadline = time.monotonic() + 100
    while not procfs.read(f"/proc/{pid}/syscall").startswith(b"0 0x0 "):
        assert time.monotonic() < deadline, "it does not wait for more"
        time.sleep(0.0002)


def give_up(_done: int, _all: int) -> None:
    """A progress that is not."""
    raise RuntimeError("given up")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print("done")

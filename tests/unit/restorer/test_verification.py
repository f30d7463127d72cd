"""What a restore has built is held against the image: every difference is named, whatever it lies in.

A process that was saved and runs on stands for one that was built: it is as its image says.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import torpor
from torpor.errors import ImageDamaged, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.image.reading import read
from torpor.procfs import PAGE
from torpor.restorer import verification
from torpor.store import SnapshotReader, Store

PROGRAM = """
import mmap, os, signal, sys, threading
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
shared = mmap.mmap(-1, 3 * 4096)
shared[4096:4100] = b"here"
file = open("/dev/zero", "rb")
threading.Thread(target=lambda: os.read(stop[0], 1), daemon=True).start() if (stop := os.pipe()) else None
print("ready", flush=True)
sys.stdin.read()
"""


class Standing(NamedTuple):
    """A process that is as its image says."""

    image: pb.Tree
    reader: SnapshotReader
    pid: int

    def look(self) -> None:
        verification.look(self.image, {self.image.processes[0].pid: self.pid})

    def contents(self) -> None:
        verification.contents(self.image, self.reader, {self.image.processes[0].pid: self.pid}, {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, int]]:
    """The store with the snapshot of a process that runs on, and its PID."""
    store = Store(tmp_path_factory.mktemp("store"))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        in_read(process.pid)
        torpor.checkpoint(process.pid, store=store)
        in_read(process.pid)
        yield store, process.pid
    finally:
        process.communicate()


def in_read(pid: int) -> None:
    """Wait until each thread of it waits in read()."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        while (task / "syscall").read_text().split()[0] != "0":
            pass


@pytest.fixture
def standing(saved: tuple[Store, int]) -> Iterator[Standing]:
    """The process, and an image to change."""
    store, pid = saved
    with store.open("latest") as reader:
        yield Standing(read(reader), reader, pid)


def test_a_process_that_is_as_it_was_passes(standing: Standing) -> None:
    standing.look()
    standing.contents()


def actions(image: pb.Tree, number: int) -> pb.SigAction:
    return next(one for one in image.processes[0].actions if one.signal == number)


def fewer_descriptors(image: pb.Tree) -> None:
    del image.processes[0].fds[-1]


def another_flag(image: pb.Tree) -> None:
    entry = image.processes[0].fds[-1]
    image.descriptions[entry.description].flags ^= os.O_APPEND


def close_on_exec(image: pb.Tree) -> None:
    entry = image.processes[0].fds[-1]
    entry.cloexec = not entry.cloexec


def one_more_thread(image: pb.Tree) -> None:
    image.processes[0].threads.add(tid=99, name=b"more")


def caught_not_ignored(image: pb.Tree) -> None:
    actions(image, signal.SIGUSR2).handler = 0x1234


def ignored_not_caught(image: pb.Tree) -> None:
    actions(image, signal.SIGUSR1).handler = signal.SIG_IGN


def another_protection(image: pb.Tree) -> None:
    image.processes[0].memory.vmas[0].prot ^= 2


def longer(image: pb.Tree) -> None:
    image.processes[0].memory.vmas[-1].end += PAGE


def one_mapping_less(image: pb.Tree) -> None:
    del image.processes[0].memory.vmas[3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fewer_descriptors, "descriptor [0-9]+"), (another_flag, "flags"), (close_on_exec, "cloexec"),
        (one_more_thread, "thread"), (caught_not_ignored, "action"), (ignored_not_caught, "action"),
        (another_protection, "prot"), (longer, "memory .* was not there"),
        (one_mapping_less, "memory .* was not there"),
    ],
)  # fmt: skip
def test_what_differs_is_named(standing: Standing, change: Callable[[pb.Tree], None], words: str) -> None:
    change(standing.image)
    with pytest.raises(RestoreFailed, match="the restored tree differs from the snapshot: ") as failed:
        standing.look()
    assert re.search(words, str(failed.value)), str(failed.value)
    assert "nothing has run, and the snapshot is unchanged" in str(failed.value)


def test_a_byte_of_memory_that_differs_is_named_with_its_address(standing: Standing) -> None:
    table = standing.image.processes[0].memory.pages
    at = next(
        start * PAGE + 100
        for start in table.starts
        if any(one.start <= start * PAGE < one.end and one.prot & 2 for one in standing.image.processes[0].memory.vmas)
    )
    with open(f"/proc/{standing.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        was = memory.read(1)
        memory.seek(at)
        memory.write(bytes([was[0] ^ 1]))
        try:
            with pytest.raises(RestoreFailed, match=f"memory at {at:#x} is {was[0] ^ 1:#x}, was {was[0]:#x}"):
                standing.contents()
        finally:
            memory.seek(at)
            memory.write(was)
    standing.contents()


def test_a_block_that_is_not_there_is_damage(standing: Standing) -> None:
    standing.image.processes[0].memory.pages.blocks[0] = (1 << 32) - 1
    with pytest.raises(ImageDamaged):
        standing.contents()


def test_shared_memory_is_read_too(standing: Standing, tmp_path: Path) -> None:
    index = next(k for k, one in enumerate(standing.image.shared) if one.kind == pb.SharedMemory.ANONYMOUS)
    size = standing.image.shared[index].size
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    pids = {standing.image.processes[0].pid: standing.pid}

    def contents() -> None:
        verification.contents(standing.image, standing.reader, pids, {index: file})

    os.ftruncate(file, size)
    os.pwrite(file, b"here", PAGE)
    contents()
    os.pwrite(file, b"her", PAGE + 1)
    with pytest.raises(RestoreFailed, match=f"shared memory {index} from 0x1000 on is not what was saved"):
        contents()
    os.pwrite(file, b"here", PAGE)
    os.ftruncate(file, size + 1)
    with pytest.raises(RestoreFailed, match=f"shared memory {index}: size is {size + 1}, was {size}"):
        contents()
    os.close(file)


def test_many_differences_are_told_in_a_few_words() -> None:
    found = verification.failed([f"field {number}" for number in range(20)]).message
    assert "field 7; and 12 more" in found and "field 8" not in found

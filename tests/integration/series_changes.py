"""What test_series.py has a user do: memory of another kind comes between two checkpoints of a series.

Of a process that was kept before, the preflight does not look at the mappings again: what is new there is found later.
Runs as its own process, as the user whose rights are tested. Prints "done".
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

import torpor
from torpor.dump.process_dump import ProcessDump
from torpor.dump.series import Series
from torpor.dump.tree_dump import TreeDump
from torpor.errors import Refused
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import pieces
from torpor.probe import probe
from torpor.procfs import PAGE
from torpor.remote import memory
from torpor.store import Store

PROGRAM = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = libc.munlock.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def area(content, kind=mmap.MAP_PRIVATE):
    at = libc.mmap(None, mmap.PAGESIZE, 3, kind | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(at, content * mmap.PAGESIZE, mmap.PAGESIZE)
    return at
def of_file(name, pages):
    with open(name, "rb") as file:
        return libc.mmap(None, pages * mmap.PAGESIZE, 3, mmap.MAP_PRIVATE, file.fileno(), 0)
def did(result):
    assert result >= 0, ctypes.get_errno()
for line in sys.stdin:
    print(eval(line), flush=True)
"""
DONTFORK, WIPEONFORK = 10, 18
SHARED_GUARD = "libc.madvise(shared, mmap.PAGESIZE, 102)"
"""MADV_GUARD_INSTALL, Linux 6.13; in shared memory 6.15."""
SEALED = "libc.syscall(462, ctypes.c_void_p(shared), mmap.PAGESIZE, 0)"
"""mseal, Linux 6.10: for ever, so that it comes last."""


@dataclass
class Program:
    """A program that evaluates what it is told."""

    process: subprocess.Popen[str]

    def tell(self, expression: str) -> int:
        """The number that it answers; 0 for None."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        return 0 if answer == "None" else int(answer)


def kept(store: Store, snapshot: torpor.Snapshot, address: int) -> tuple[pb.Vma, bytes]:
    """The mapping at an address and its page there."""
    with store.open(snapshot) as reader:
        memory = pb.Tree.FromString(reader.body).processes[0].memory
        page = address // PAGE
        row = next(row for row in pieces(memory.pages) if row.page <= page < row.page + row.size)
        content = reader.read_block(row.block)[(row.skip + page - row.page) * PAGE :][:PAGE]
        return next(vma for vma in memory.vmas if vma.start <= address < vma.end), bytes(content)


def given_back(program: Program, store: Store, series: torpor.Series) -> None:
    """What was given back since the last checkpoint is the file's again, in the one that is to be the last, too."""
    with open("file", "wb") as file:
        file.write(b"f" * 8 * PAGE)
    at = program.tell("of_file('file', 8)")
    program.tell(f"ctypes.memset({at}, 111, 8 * mmap.PAGESIZE)")
    torpor.checkpoint(program.process.pid, store=store, series=series)
    program.tell(f"did(libc.madvise({at}, 8 * mmap.PAGESIZE, mmap.MADV_DONTNEED))")
    last = torpor.checkpoint(program.process.pid, store=store, series=series, then="stop")
    os.kill(program.process.pid, signal.SIGCONT)
    with store.open(last) as reader:
        pages = pb.Tree.FromString(reader.body).processes[0].memory.pages
        own = {start + k for start, count in zip(pages.starts, pages.counts, strict=True) for k in range(count)}
    assert not own.intersection(range(at // PAGE, at // PAGE + 8)), "a page that was given back is kept"
    assert program.tell(f"ctypes.string_at({at}, 1)[0]") == ord("f")


def guarded(program: Program, store: Store, series: torpor.Series) -> None:
    """A guard region over pages of a file that were written is there at once, and is kept."""
    at = program.tell("of_file('file', 8)")
    program.tell(f"ctypes.memset({at}, 111, 8 * mmap.PAGESIZE)")
    torpor.checkpoint(program.process.pid, store=store, series=series)
    if program.tell(f"libc.madvise({at + PAGE}, mmap.PAGESIZE, 102)") < 0:
        return  # a kernel before 6.15
    last = torpor.checkpoint(program.process.pid, store=store, series=series)
    with store.open(last) as reader:
        space = pb.Tree.FromString(reader.body).processes[0].memory
        assert (at // PAGE + 1) in space.guards.starts
        assert kept(store, last, at + 2 * PAGE)[1] == b"o" * PAGE


def hash_of_mapped(store: Store, snapshot: torpor.Snapshot, name: bytes) -> pb.Content:
    with store.open(snapshot) as reader:
        image = pb.Tree.FromString(reader.body)
        return next(file.content for file in image.files if file.path.endswith(name))


def written_before_the_hash(program: Program, store: Store, series: torpor.Series | None) -> None:
    """A file that is mapped, and written when the tree runs again but before its hash is computed, has no hash."""
    with open("mapped", "wb") as file:
        file.truncate(5 << 20)
    program.tell("(descriptor := os.open('mapped', os.O_RDWR))")
    program.tell("(view := mmap.mmap(descriptor, 0)) and None")
    program.tell("os.close(descriptor)")
    write = partial(program.tell, "view.__setitem__(7, 1 + view[7])")
    write()  # from now on a write leaves the file's times as they are
    for late in (False, True, False):
        with pytest.MonkeyPatch.context() as patch:
            if late:
                patch.setattr(TreeDump, "describe", preceded(TreeDump.describe, write))
            snapshot = torpor.checkpoint(program.process.pid, store=store, series=series)
        content = hash_of_mapped(store, snapshot, b"/mapped")
        assert content.whole and (content.digest == b"") is (late or not probe().uffd_wp_async)
    program.tell("view.close()")


def preceded(method: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """A method before which something else is done."""

    def both(*args: Any, **options: Any) -> Any:
        act()
        return method(*args, **options)

    return both


def written_by_others(program: Program, store: Store, series: torpor.Series) -> None:
    """What another process writes while the tree is frozen is in this snapshot, or in the next one."""
    at = program.tell("area(b'o')")
    for owner, name in ((Series, "look"), (ProcessDump, "begin_snapshot"), (ProcessDump, "finish_snapshot")) * 2:
        ours = os.urandom(8)
        with pytest.MonkeyPatch.context() as patch:
            write = partial(memory.write, program.process.pid, at, ours)
            patch.setattr(owner, name, followed(getattr(owner, name), write))
            torpor.checkpoint(program.process.pid, store=store, series=series)
        _, page = kept(store, torpor.checkpoint(program.process.pid, store=store, series=series), at)
        assert page.startswith(ours), f"what was written after {name} is lost"


def followed(method: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    """A method after which something else is done."""

    def both(*args: Any, **options: Any) -> Any:
        result = method(*args, **options)
        act()
        return result

    return both


def main() -> None:
    """Let it come, and look at what is kept."""
    store = Store("store")
    command = [sys.executable, "-c", PROGRAM]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        torpor.Series() as series,
    ):
        program = Program(process)
        try:
            program.tell("None")
            torpor.checkpoint(process.pid, store=store, series=series)
            for advice, content in ((DONTFORK, b"d"), (WIPEONFORK, b"w")):
                at = program.tell(f"area({content!r})")
                program.tell(f"did(libc.madvise({at}, mmap.PAGESIZE, {advice}))")
                vma, page = kept(store, torpor.checkpoint(process.pid, store=store, series=series), at)
                assert list(vma.advice) == [advice]
                assert page == content * mmap.PAGESIZE
                program.tell(f"did(libc.madvise({at}, mmap.PAGESIZE, {advice + 1}))")  # its opposite
                torpor.checkpoint(process.pid, store=store, series=series)
            at = program.tell("area(b'l')")
            torpor.checkpoint(process.pid, store=store, series=series)
            program.tell(f"did(libc.mlock({at}, mmap.PAGESIZE))")
            vma, page = kept(store, torpor.checkpoint(process.pid, store=store, series=series), at)
            assert vma.locked
            assert page == b"l" * mmap.PAGESIZE
            program.tell(f"did(libc.munlock({at}, mmap.PAGESIZE))")
            torpor.checkpoint(process.pid, store=store, series=series)

            given_back(program, store, series)
            guarded(program, store, series)
            written_by_others(program, store, series)
            for one in (series, None):
                written_before_the_hash(program, store, one)

            for what in (SHARED_GUARD, SEALED):
                program.tell("(shared := area(b's', mmap.MAP_SHARED))")
                torpor.checkpoint(process.pid, store=store, series=series)
                if program.tell(what) < 0:
                    continue  # an older kernel
                try:
                    torpor.checkpoint(process.pid, store=store, series=series)
                except Refused:
                    assert program.tell("4711") == 4711, "it does not go on"
                else:
                    raise AssertionError(f"it was kept: {what}")
                program.tell("libc.munmap(shared, mmap.PAGESIZE)")
        finally:
            process.kill()


if __name__ == "__main__":
    main()
    print("done")

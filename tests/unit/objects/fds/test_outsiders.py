"""What a tree shares with processes outside of it: found, and told apart from what only looks like it."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, FdReference, holder
from torpor.objects.fds import descriptors, outsiders
from torpor.objects.fds.outsiders import Shared


@contextmanager
def outsider(*fds: int, words: Sequence[str] = ("sleep", "1000")) -> Iterator[int]:
    """A process that has descriptors, and is in no tree; its PID."""
    with subprocess.Popen(words, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        yield process.pid
        process.kill()


def found(tree: FdReference, memory: Sequence[tuple[int, int]] = ()) -> list[Shared]:
    """What is shared with it, once it has said what it has."""
    tree.ready()
    tree.stop()
    return outsiders.find(descriptors.grab(tree.pids), memory)


def test_a_pipe_that_another_process_has_is_told_with_both(acting: Acting) -> None:
    def body(_: Path) -> None:
        ours, theirs = os.pipe()
        with outsider(theirs) as pid, holder(f"os.close({theirs}); ready(); wait()", pass_fds=(ours, theirs)) as tree:
            link = os.readlink(f"/proc/self/fd/{ours}")
            os.close(ours)
            os.close(theirs)
            (one,) = found(tree)
            assert (one.outsider, one.only_one) == (pid, "")
            assert one.what.startswith(f"process {tree.process.pid} (python")
            assert one.what.endswith(f", fd {ours} ({link})")
            (words,) = outsiders.notices([one])
            assert f"process {pid} (sleep), outside of the tree," in words
            assert outsiders.reasons([one]) == []

    acting(body)


def test_a_process_of_the_tree_is_no_outsider() -> None:
    """Nor is one that was born in it after the dump."""
    code = "pair = os.pipe(); child = os.fork()\nif child == 0: time.sleep(600)\nready(child=child); wait()"
    with holder(code) as tree:
        tree.ready()
        tree.stop()
        grabbed = descriptors.grab(tree.pids)
        assert outsiders.find(grabbed) == []
        grabbed.pids.append(tree.fds["child"])
        assert outsiders.find(grabbed) == []


def test_one_that_has_ended_is_none() -> None:
    """A zombie has nothing open, and nothing keeps it from being reaped."""
    ours, theirs = os.pipe()
    with (
        outsider(theirs, words=["true"]) as pid,
        holder("ready(); wait()", pass_fds=(ours,)) as tree,
    ):
        os.close(ours)
        os.close(theirs)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found(tree) == []


def test_a_lock_stays_with_who_has_it_too(tmp_path: Path, acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with open(tmp / "locked", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with outsider(file.fileno()) as pid, holder("ready(); wait()", pass_fds=[file.fileno()]) as tree:
                file.close()
                (one,) = found(tree)
                assert (one.outsider, one.only_one) == (pid, "its lock")
                (reason,) = outsiders.reasons([one])
                assert f"process {pid} (sleep), outside of the tree, has it open too, and keeps its lock" in reason.why
                assert len(list(outsiders.notices([one]))) == 2

    acting(body)


def test_the_same_file_opened_by_another_is_not_shared(tmp_path: Path) -> None:
    """Neither by its name, nor where it is locked by its opener, nor without a name; a copy of the description is."""
    name = tmp_path / "file"
    name.touch()
    other = os.open(name, os.O_RDWR)
    with (
        outsider(other),
        holder(
            f"fd = os.open({os.fspath(name)!r}, os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_SH); ready(); wait()"
        ) as tree,
    ):
        os.close(other)
        assert found(tree) == []


def test_anonymous_objects_are_told_apart() -> None:
    """All eventfds have one link, and one inode."""
    mine, shared = os.eventfd(0), os.eventfd(0)
    with outsider(mine, shared) as pid, holder("own = os.eventfd(0); ready(); wait()", pass_fds=[shared]) as tree:
        os.close(mine)
        os.close(shared)
        (one,) = found(tree)
        assert one.outsider == pid
        assert f"fd {shared} (anon_inode:[eventfd])" in one.what


def test_memory_without_a_name_is_found_by_its_mappings() -> None:
    fd = os.memfd_create("x")
    os.ftruncate(fd, mmap.PAGESIZE)
    status = os.fstat(fd)
    program = f"import mmap, os; m = mmap.mmap({fd}, {mmap.PAGESIZE}); os.close({fd}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        os.close(fd)
        with holder("ready(); wait()") as tree:
            (one,) = found(tree, [(status.st_dev, status.st_ino)])
        assert one == Shared(process.pid, "shared memory")
        process.kill()


@pytest.mark.parametrize("count", [1, 9])
def test_notices_are_a_sentence_for_each_outsider(count: int) -> None:
    """However much it has."""
    many = [Shared(os.getpid(), f"thing {number}", "its port") for number in range(count)]
    told, refused = outsiders.notices(many)
    assert told.count("thing") <= 5
    assert "a wake is refused while process" in refused


def test_input_that_was_not_read_is_said() -> None:
    reader, writer = os.pipe()
    with holder("ready(); time.sleep(600)", stdin=reader) as tree:
        os.close(reader)
        tree.ready()
        tree.stop()
        os.write(writer, b"12345")
        grabbed = descriptors.grab(tree.pids)
        assert outsiders.find(grabbed) == [], "the restorer replaces it"
        (words,) = outsiders.unread_input(grabbed)
        assert words.startswith("5 bytes of input that the program has not read are not kept: process")
        os.close(writer)

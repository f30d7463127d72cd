"""A whole tree, from the freeze to its description: what it is in the image, and that it runs on as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from torpor import procfs
from torpor.dump.process_dump import SnapshotLost
from torpor.dump.tree_dump import TreeDump
from torpor.errors import CheckpointFailed
from torpor.image import image_pb2 as pb
from torpor.remote.freeze import Frozen
from torpor.remote.tracer import in_own_thread
from torpor.remote.waits import Waits
from torpor.util.workers import Workers

CHILDREN = """
if os.fork() == 0:
    signal.pause()
if os.fork() == 0:
    os._exit(3)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
"""
SUBREAPER = "ctypes.CDLL(None).prctl(36, 1)\n"
LOCKED = "ctypes.CDLL(None).mlock(ctypes.create_string_buffer(8192), 8192)\n"
ANSWER = "print('ready', flush=True)\nfor line in sys.stdin: print('here', flush=True)"


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs this code, says that it has, and answers every line."""
    start = f"import ctypes, os, signal, sys\n{code}\n{ANSWER}"
    process = subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def answers(process: subprocess.Popen[bytes]) -> bool:
    """Whether it runs as before."""
    assert process.stdin and process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline() == b"here\n"


def dumped(root: int, act: Callable[[TreeDump, Frozen], Any], still: str = "") -> Any:
    """Freeze a tree, grab it, and do something with the dump."""

    def work(_: object) -> Any:
        with (
            Workers(1) as pool,
            Frozen(root, 10) as frozen,
            TreeDump(frozen.processes, Waits(), None, still, again=True, pool=pool) as taken,
        ):
            taken.grab(reset_outside=False, stdio=None)
            return act(taken, frozen)

    return in_own_thread(work)


def image_of(taken: TreeDump, frozen: Frozen) -> pb.Tree:
    """The image, made while the tree runs on."""
    if taken.forked:
        frozen.thaw()
    image, pages = taken.describe()
    assert len(pages) == len(image.processes) == len(taken.before)
    return image


def test_every_process_is_in_the_image_also_one_that_had_ended() -> None:
    with program(CHILDREN) as process:
        image: pb.Tree = dumped(process.pid, image_of)
        assert answers(process)
    assert [one.zombie for one in image.processes].count(True) == 1
    root = image.processes[0]
    assert {one.ppid for one in image.processes[1:]} == {root.pid}
    (ended,) = (one for one in image.processes if one.zombie)
    assert os.waitstatus_to_exitcode(ended.exit_status) == 3


def outline(pid: int) -> tuple[str, list[str], list[int]]:
    """Its mappings, descriptors and children."""
    folder = Path(f"/proc/{pid}")
    return (folder / "maps").read_text(), sorted(os.listdir(folder / "fd")), procfs.children(pid, [pid])


def test_a_tree_that_was_looked_at_is_as_it_was() -> None:
    with program(CHILDREN) as process:
        before = outline(process.pid)
        dumped(process.pid, lambda taken, frozen: None)
        assert outline(process.pid) == before
        assert answers(process)


@pytest.mark.parametrize(
    ("code", "why"), [(SUBREAPER + CHILDREN, "is a child subreaper"), (LOCKED, "has locked memory")]
)
def test_a_tree_whose_memory_a_fork_would_not_show_stands_still_and_says_so(code: str, why: str) -> None:
    def act(taken: TreeDump, frozen: Frozen) -> list[str]:
        assert not taken.forked
        image_of(taken, frozen)
        return taken.notices

    with program(code) as process:
        (notice,) = (one for one in dumped(process.pid, act) if "it stayed frozen" in one)
        assert why in notice
        assert answers(process)


def test_an_error_after_the_end_of_a_process_is_that_end() -> None:
    def act(taken: TreeDump, frozen: Frozen) -> None:
        error = ValueError("whatever it is")
        taken.raise_if_lost(error)
        os.kill(frozen.root, signal.SIGKILL)
        os.waitid(os.P_PID, frozen.root, os.WEXITED | os.WNOWAIT)
        with pytest.raises(CheckpointFailed, match=r"\(python.*\) ended during the checkpoint"):
            taken.raise_if_lost(error)

    with program("") as process:
        dumped(process.pid, act)


def test_a_snapshot_that_somebody_killed_is_told_from_the_tree() -> None:
    """It may be made again; the tree lives."""

    def act(taken: TreeDump, frozen: Frozen) -> None:
        frozen.thaw()
        (one,) = taken._living()
        os.kill(one.memory_pid, signal.SIGKILL)
        while not procfs.is_ending(one.memory_pid, one.memory_pid):
            pass
        with pytest.raises(SnapshotLost, match="was killed, perhaps for want of memory"):
            taken.raise_if_lost(ValueError())

    with program("") as process:
        dumped(process.pid, act)
        assert answers(process)

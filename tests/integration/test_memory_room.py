"""A job in a control group whose memory is nearly used up is saved, and outlives it."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.building import build
from tests.conformance.harness import Stage
from tests.users import BIN, User

HERE = Path(__file__).parent
PROGRAM = HERE.parent / "conformance" / "victims" / "rewrites.c"
USED, TIGHT, AMPLE = 96, 150, 400
"""MiB."""
SHARED = """
import mmap, signal, sys
memory = mmap.mmap(-1, int(sys.argv[1]) << 20)
for at in range(0, len(memory), mmap.PAGESIZE):
    memory[at] = 1
print("ready", flush=True)
signal.pause()
"""
SAVE = """
import sys, torpor
with torpor.Series() as series:
    for _ in range(2):
        info = torpor.checkpoint(int(sys.argv[1]), store="store", series=series)
        print("; ".join(info.notices) or "nothing")
"""
LOSE = """
import os, signal, sys, torpor
lost = []
def find():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            tracer = open(f"/proc/{name}/status").read().split("TracerPid:")[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if tracer in os.listdir("/proc/self/task") and int(name) != int(sys.argv[1]):
            yield int(name)
def lose(_done, _all):
    if not lost:
        lost.extend(find())
        assert len(lost) == 1, lost
        assert open(f"/proc/{lost[0]}/oom_score_adj").read() == "1000\\n"
        os.kill(lost[0], signal.SIGKILL)
print("; ".join(torpor.checkpoint(int(sys.argv[1]), store="store", progress=lose).notices))
assert lost
"""


def controller() -> tuple[Path, str]:
    """Where the groups of the memory controller are, and the name of the file with the limit."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point, (kind, _, options) = Path(line.split()[4]), line.partition(" - ")[2].split(" ", 2)
        if kind == "cgroup" and "memory" in options.split(","):
            return point, "memory.limit_in_bytes"
        if kind == "cgroup2" and "memory" in (point / "cgroup.subtree_control").read_text().split():
            return point, "memory.max"
    pytest.skip("no memory controller of control groups is mounted with its groups to be made")


@contextmanager
def group(limit: int) -> Iterator[Path]:
    """A control group of the test's own."""
    if os.geteuid():
        pytest.skip("only root makes control groups")
    point, name = controller()
    made = point / f"torpor-test-{uuid.uuid4().hex}"
    try:
        made.mkdir()
        (made / name).write_text(str(limit << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield made
    finally:
        made.rmdir()


def start(user: User, made: Path, *command: str | Path) -> Any:
    """Start a command in a group."""
    waiting: list[str | Path] = ["sh", "-c", 'read -r _ && exec "$@"', "sh", *command]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = user.popen(waiting, **pipes)
    (made / "cgroup.procs").write_text(str(job.pid))
    job.stdin.write(b"\n")
    job.stdin.flush()
    return job


@contextmanager
def running(user: User, made: Path, *command: str | Path) -> Iterator[int]:
    """The program in such a group; its PID."""
    job = start(user, made, *command)
    try:
        assert job.stdout.readline() == b"ready\n"
        yield job.pid
        assert job.poll() is None, f"the job was killed: {job.returncode}"
    finally:
        job.kill()
        job.communicate()


def notices(stage: Stage, user: User, limit: int) -> list[str]:
    """What two checkpoints of a series tell of the job, which runs on."""
    with group(limit) as made, running(user, made, build(PROGRAM, stage.programs), str(USED)) as pid:
        done = user.run([BIN / "python", "-c", SAVE, str(pid)])
        assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_where_copies_do_not_fit_it_stands_still(stage: Stage, as_user: User) -> None:
    for told in notices(stage, as_user, TIGHT):
        assert told.startswith("it stayed frozen until its snapshot was written: the memory cgroup "), told


def test_where_they_do_it_runs_on(stage: Stage, as_user: User) -> None:
    assert notices(stage, as_user, AMPLE) == ["nothing"] * 2


def test_shared_memory_that_fits_only_once_is_copied_to_disk(as_user: User) -> None:
    """The saver is in the job's group, as in a job of Slurm."""
    with group(TIGHT + USED // 2) as made, running(as_user, made, BIN / "python", "-c", SHARED, str(USED)) as pid:
        saver = start(as_user, made, BIN / "torpor", "checkpoint", "--store", "store", str(pid))
        _, error = saver.communicate()
        assert saver.returncode == 0, error
        assert b"of its shared memory was copied to disk: memory is short" in error


def test_a_snapshot_is_killed_first_and_the_job_stands_still_then(stage: Stage, as_user: User) -> None:
    program = build(PROGRAM, stage.programs)
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    job = as_user.popen([program, str(USED)], **pipes)
    try:
        assert job.stdout.readline() == b"ready\n"
        done = as_user.run([BIN / "python", "-c", LOSE, str(job.pid)])
        assert done.returncode == 0, done.stderr
        assert "the snapshot of process" in done.stdout
        assert "was killed, perhaps for want of memory" in done.stdout
        assert job.poll() is None, f"the job was killed: {job.returncode}"
    finally:
        job.kill()
        job.communicate()

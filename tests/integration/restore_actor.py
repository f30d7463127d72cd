"""What test_restore.py has an ordinary user do: starts a program, keeps and kills it, and does as it is told with it.

Runs as its own process, as the user whose rights are tested. Prints "done"; anything that is not as it should be
ends it with a traceback.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torpor
from torpor.arch.x86_64 import NR
from torpor.dump.process_dump import ProcessDump
from torpor.dump.tree_dump import TreeDump
from torpor.errors import ImageDamaged, RestoreFailed, TorporError
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.image.reading import read
from torpor.objects.memory.own_pages import PageWriter
from torpor.remote.batch import Call
from torpor.restorer import plan, surroundings
from torpor.restorer.execution import Builder
from torpor.restorer.restore import explain
from torpor.store import SnapshotWriter

PROGRAM = """
import os, signal, sys, threading, time
log = open("count", "a", buffering=1)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
def count():
    number = 0
    while True:
        number += 1
        print(os.getpid(), os.getppid(), threading.get_native_id(), number, int(time.monotonic()), file=log)
        time.sleep(0.002)
thread = threading.Thread(target=count, daemon=True, name="counter")
thread.start()
while True:
    time.sleep(0.5)
"""


def opened() -> set[str]:
    """What descriptors of this process lead to, by their numbers."""
    table = "/proc/self/fd"
    return {f"{fd} {os.readlink(f'{table}/{fd}')}" for fd in os.listdir(table) if os.path.lexists(f"{table}/{fd}")}


OPENED = opened()


def counted() -> list[str]:
    """The last whole line that the program wrote."""
    lines = Path("count").read_text().split("\n") if Path("count").exists() else []
    return lines[-2].split() if len(lines) > 1 else []


def goes_on() -> list[str]:
    """Wait until the program has counted further; the line."""
    before, deadline = counted(), time.monotonic() + 100
    while (now := counted()) == before:
        assert time.monotonic() < deadline, "it does not count"
        time.sleep(0.001)
    return now


def started() -> subprocess.Popen[bytes]:
    """The program, which counts."""
    null = subprocess.DEVNULL
    command = ["/usr/bin/python3", "-c", PROGRAM]
    program = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
    goes_on()
    return program


def saved_and_killed(then: Literal["kill", "stop"] = "kill") -> torpor.Snapshot:
    """A snapshot of a program that is dead, or only stopped."""
    program = started()
    snapshot = torpor.checkpoint(program.pid, store="store", then=then)
    if then == "kill":
        program.wait()  # the tracer, which is its parent, has waited for it
    return snapshot


def ended_well(job: torpor.Job) -> None:
    """It counts, and answers a signal with its exit code."""
    goes_on()
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 3


def nothing_is_left() -> None:
    """No child of ours, no descriptor that was not there, and nobody else who writes."""
    assert opened() == OPENED, "a descriptor is left open"
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        raise AssertionError("a child is left")
    except ChildProcessError:
        pass
    count = counted()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                assert os.readlink(entry / "cwd") != os.getcwd(), f"{entry.name} is left"
            except OSError:
                continue
    assert counted() == count


def same_ids() -> None:
    """PIDs, the parent's too, are as before."""
    snapshot = saved_and_killed()
    before = counted()
    job = torpor.restore(snapshot)
    assert goes_on()[:3] == before[:3]
    assert str(job.root_pid) == before[0]
    assert os.readlink(f"/proc/{job.tree_pid}/cwd") == os.getcwd()
    ended_well(job)


def pids_taken_meanwhile() -> None:
    """They were free when it was asked, and are not when the processes are made: a capsule has them."""
    snapshot = saved_and_killed("stop")
    (holder,) = (int(line[0]) for line in [counted()])
    obstacles = surroundings._obstacles

    def others(*question: Any) -> Iterator[str]:
        return (one for one in obstacles(*question) if "has the PID" not in one)

    with mock.patch.object(surroundings, "_obstacles", others):
        job = torpor.restore(snapshot)
    assert goes_on()[0] == str(job.root_pid) == str(holder)
    assert job.tree_pid != holder
    ended_well(job)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)


def again_and_again() -> None:
    """A restored job is checkpointed again."""
    snapshot = saved_and_killed()
    for _ in range(3):
        job = torpor.restore(snapshot)
        goes_on()
        snapshot = torpor.checkpoint(job.pid, store="store", then="kill")
        assert job.wait() == -signal.SIGKILL
    ended_well(torpor.restore(snapshot))


@contextmanager
def spoiled(stage: str) -> Iterator[None]:
    """A plan in which one call of a stage gives another result than it must."""
    make = plan.make

    def spoil(*args: object) -> plan.Plan:
        made = make(*args)  # type: ignore[arg-type]
        call = Call(NR.getpid, (), 0, "trying something")
        process = made.processes[-1]
        calls = process.threads[-1].calls if stage == "threads" else getattr(process, stage)
        calls.insert(len(calls) // 2, call)
        return made

    with mock.patch("torpor.restorer.restore.make", spoil):
        yield


def failing_step() -> None:
    """A step that fails is named, nothing is left, and the restore can be tried again."""
    snapshot = saved_and_killed()
    for stage in ("birth", "build", "threads"):
        with spoiled(stage):
            try:
                torpor.restore(snapshot)
            except RestoreFailed as error:
                assert "trying something" in str(error), error
                assert "process" in str(error), error
            else:
                raise AssertionError("a restore that must fail did not")
        nothing_is_left()
    ended_well(torpor.restore(snapshot))


def failing_checkpoint() -> None:
    """A checkpoint that fails in any of its steps leaves no descriptor and no thread, and the program runs on."""
    program = started()
    torpor.checkpoint(program.pid, store="store")
    before = opened()
    steps = (
        (TreeDump, "grab"), (ProcessDump, "listen"), (ProcessDump, "leave"),
        (TreeDump, "describe"), (PageWriter, "store_private"), (SnapshotWriter, "publish"), (reading, "read"),
    )  # fmt: skip
    ways: tuple[Literal["run", "kill"], ...] = ("run", "kill")
    for place, name in steps:
        step = getattr(place, name)
        for then in ways:
            for late in (False, True):
                if (place, late) == (SnapshotWriter, True) or (place, then) == (reading, "run"):
                    continue  # it is saved by then, or not proven
                with mock.patch.object(place, name, broken(step, late=late)):
                    try:
                        torpor.checkpoint(program.pid, store="store", then=then)
                    except TorporError as error:
                        assert re.search("of the test|Input/output error", str(error)), error
                    else:
                        raise AssertionError(f"{name} was not called")
                goes_on()
                assert opened() == before, f"{name}: a descriptor is left open"
                deadline = time.monotonic() + 100
                while len(os.listdir("/proc/self/task")) > 1:
                    assert time.monotonic() < deadline, f"{name}: a thread is left"
                    time.sleep(0.001)
    program.kill()
    program.wait()


def broken(step: Callable[..., object], *, late: bool) -> Callable[..., object]:
    """What fails in the place of a step, or after it."""

    def fail(*args: Any, **options: Any) -> None:
        if late:
            step(*args, **options)
        raise OSError(errno.EIO, "of the test")

    return fail


def another_tree_than_saved() -> None:
    """What was built is not what was saved: it is found before anything runs, and told by object and field."""
    snapshot = saved_and_killed()
    with torpor.Store("store").open(snapshot) as reader:
        image = read(reader)
    (process,) = image.processes
    name = f"process {process.pid} (python3)"
    log = next(entry.fd for entry in process.fds if image.descriptions[entry.description].flags & os.O_APPEND)
    heap = next(vma for vma in process.memory.vmas if vma.start == process.memory.start_brk)
    page = next(k for k in process.memory.pages.starts if heap.start <= k * mmap.PAGESIZE < heap.end)
    quickly = (
        (NR.fcntl, (log, fcntl.F_SETFL, 0), 0, f"{name}: descriptor {log}: flags are O_WRONLY, were O_WRONLY|O_APPEND"),
        (NR.fcntl, (log, fcntl.F_DUPFD, 77), 77, f"{name}: descriptor 77 was not there"),
        (NR.mprotect, (heap.start, heap.end - heap.start, 1), 0, "prot is r--, was rw-"),
    )
    only_proven = (
        (NR.umask, (0o123,), None, f"{name}: umask is 123, was {process.umask:03o}"),
        (NR.prctl, (36, 1, 0, 0, 0), 0, f"{name}: child subreaper is True, was False"),
        (NR.clock_gettime, (0, page * mmap.PAGESIZE), 0, f"{name}: memory at {page * mmap.PAGESIZE:#x}"[:-1]),
    )
    for number, args, result, words in (*quickly, *only_proven):
        with added(Call(number, args, result, "doing something else")):
            try:
                torpor.restore(snapshot, prove=True)
            except RestoreFailed as error:
                assert words in str(error), error
            else:
                raise AssertionError(f"not found: {words}")
        nothing_is_left()
    for number, args, result, words in quickly:
        with added(Call(number, args, result, "doing something else")):
            try:
                torpor.restore(snapshot, prove=False)
            except RestoreFailed as error:
                assert words in str(error), error
            else:
                raise AssertionError(f"not found at once: {words}")
        nothing_is_left()
    ended_well(torpor.restore(snapshot, prove=True))


@contextmanager
def added(call: Call) -> Iterator[None]:
    """A plan by which the main process does one thing more, at the end."""
    make = plan.make

    def more(*args: object) -> plan.Plan:
        made = make(*args)  # type: ignore[arg-type]
        main = next(process for process in made.processes if process.threads)
        main.process_state.append(call)
        return made

    with mock.patch("torpor.restorer.restore.make", more):
        yield


def failing_verification() -> None:
    """A page that is not what was written: nothing runs, not even for a moment."""
    snapshot = saved_and_killed()
    pack = next(Path("store/packs").iterdir())
    whole = pack.read_bytes()
    pack.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    before = counted()
    try:
        torpor.restore(snapshot)
    except ImageDamaged as error:
        assert "not what was written" in str(error), error
    else:
        raise AssertionError("a damaged image was woken")
    assert counted() == before
    nothing_is_left()
    pack.write_bytes(whole)
    ended_well(torpor.restore(snapshot))


def killed_at_every_stage() -> None:
    """A restorer that dies leaves nothing of the tree; the image wakes afterwards."""
    snapshot = saved_and_killed()
    for stage in ("create_processes", "build", "settle", "release"):
        for after in (False, True):
            if (stage, after) == ("release", True):
                continue  # then the job is there, as it should be
            restorer = os.fork()
            if restorer == 0:
                _die_in(stage, after)
                torpor.restore(snapshot)
                os._exit(1)
            assert os.waitpid(restorer, 0)[1] == signal.SIGKILL
            deadline = time.monotonic() + 100
            while True:
                try:
                    nothing_is_left()
                    break
                except AssertionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
    ended_well(torpor.restore(snapshot))


def _die_in(stage: str, after: bool) -> None:
    method: Callable[..., None] = getattr(Builder, stage)

    def die(self: Builder, *args: object) -> None:
        if after:
            method(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Builder, stage, die)


def another_kernels_vdso() -> None:
    """A tree that has the vDSO of another kernel calls this one's; a second time, too."""
    snapshot = saved_and_killed()

    def other(reader: object) -> pb.Tree:
        image = read(reader)  # type: ignore[arg-type]
        for process in image.processes:
            content = bytearray(process.memory.vdso_content)
            content[-1] ^= 1
            process.memory.vdso_content = bytes(content)
        return image

    for _ in range(2):
        with mock.patch("torpor.image.reading.read", other):
            job = torpor.restore(snapshot)
        goes_on()
        snapshot = torpor.checkpoint(job.pid, store="store", then="kill")
        job.wait()
    ended_well(torpor.restore(snapshot))


def some_threads_first() -> None:
    """The threads that are named go first, and what comes in between may still fail."""
    snapshot = saved_and_killed()
    seen: list[str] = []

    def first(name: str) -> bool:
        seen.append(name)
        return False

    def broken() -> None:
        assert seen == ["python3", "python3"], seen
        raise ConnectionError("nobody is there")

    before = counted()
    try:
        torpor.restore(snapshot, first=first, connected=broken)
    except ConnectionError:
        assert counted() == before
        nothing_is_left()
    else:
        raise AssertionError("an error in between was not told")
    told: list[bool] = []
    job = torpor.restore(snapshot, first=lambda name: True, connected=lambda: told.append(bool(goes_on())))
    assert told == [True]
    ended_well(job)


def killed_job() -> None:
    """SIGKILL for the job's PID ends all of it."""
    job = torpor.restore(saved_and_killed())
    goes_on()
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 100
    while os.path.exists(f"/proc/{job.tree_pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def explained() -> None:
    """A plan can be read, and reading it starts nothing."""
    snapshot = saved_and_killed()
    text = explain(snapshot)
    for words in ("mapping the vDSO", "setting its name", "starting thread", "giving up every capability"):
        assert words in text or (words.startswith("giving") and os.geteuid() == 0), words
    nothing_is_left()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("done")

"""Locks that are files: of this host's processes, of others that stopped, and of hosts whose clocks differ."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.util import lock_files
from torpor.util.lock_files import PRUNE, SPARE, Busy, LockFile, LockLost, LockOwner, make_spare, take


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def exclusive(folder: int, patience: float = 0) -> LockFile:
    return take(folder, PRUNE, lambda _: True, insist=True, patience=patience)


def shared(folder: int, patience: float = 0) -> LockFile:
    return take(folder, "save", lambda other: other == PRUNE, patience=patience)


def of_another_host(folder: int, what: str = "save", age: float = 0) -> str:
    """A lock whose holder cannot be seen, refreshed so many seconds ago by this host's clock."""
    name = f"{what},aaaaaaaaaa,4711,1,{'0' * 16},node17"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.utime(name, (time.time() - age,) * 2, dir_fd=folder)
    return name


HOLDS = """
import os, sys, time
from torpor.util.lock_files import take
folder = os.open(sys.argv[1], os.O_RDONLY)
lock = take(folder, sys.argv[2], lambda other: "prune" in (other, sys.argv[2]), patience=60)
print(lock.name, flush=True)
sys.stdin.readline()
lock.confirm()
lock.release()
"""


@contextlib.contextmanager
def held_elsewhere(path: Path, what: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that holds a lock until it reads a line; and the lock's name."""
    command = [sys.executable, "-c", HOLDS, str(path), what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_shared_ones_stand_beside_each_other_and_exclude_a_prune(folder: int) -> None:
    first, second = shared(folder), shared(folder)
    with pytest.raises(Busy) as caught:
        exclusive(folder)
    assert {str(holder) for holder in caught.value.holders} == {str(LockOwner.own("save"))}
    first.release()
    second.release()
    prune = exclusive(folder)
    for other in (shared, exclusive):
        with pytest.raises(Busy):
            other(folder)
    prune.release()
    assert os.listdir(folder) == []


def test_a_holder_that_is_killed_holds_nothing(folder: int, tmp_path: Path) -> None:
    for what in ("save", PRUNE):
        with held_elsewhere(tmp_path, what) as (process, name):
            with pytest.raises(Busy):
                exclusive(folder)
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended, too
            exclusive(folder).release()
            assert name not in os.listdir(folder)


def test_a_pid_that_another_process_has_now_is_no_holder(folder: int) -> None:
    own = LockOwner.own("save")
    parent = os.getppid()
    os.close(os.open(f"save,aaaaaaaaaa,{parent},1,{own.where},{own.host}", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    exclusive(folder).release()
    assert os.listdir(folder) == []


def test_a_lock_of_this_process_that_could_not_be_removed_holds_nothing(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = shared(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", broken(errno.EIO))
        with pytest.raises(OSError):
            lock.release()
    assert os.listdir(folder) == [lock.name]
    exclusive(folder).release()
    assert os.listdir(folder) == []


def broken(code: int) -> object:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lock_files, "WATCH", 0.3)
    patch.setattr(lock_files, "REFRESH", 0.05)


def test_the_lock_of_a_host_that_is_gone_is_removed_once_it_was_watched(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    name = of_another_host(folder, age=1000)
    with pytest.raises(Busy):
        exclusive(folder)  # who does not wait cannot know
    exclusive(folder, patience=0.01).release()
    assert name not in os.listdir(folder)
    of_another_host(folder, PRUNE, age=1000)
    shared(folder, patience=0.01).release()


@pytest.mark.parametrize("age", [0, -1000])
def test_a_fresh_lock_of_another_host_is_respected(folder: int, monkeypatch: pytest.MonkeyPatch, age: float) -> None:
    """One from the future is watched: its host's clock may be ahead, or its host gone."""
    quick(monkeypatch)
    of_another_host(folder, age=age)
    if age:
        exclusive(folder, patience=0.01).release()
    else:
        with pytest.raises(Busy) as caught:
            exclusive(folder, patience=0.01)
        assert [str(holder) for holder in caught.value.holders] == ["process 4711 on node17"]


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_clock_that_is_wrong_by_an_hour_takes_nobodys_lock(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """The holder refreshes its file, and that is seen."""
    quick(monkeypatch)
    name = of_another_host(folder, age=skew)
    refreshed = 0
    real = time.sleep

    def sleep(seconds: float) -> None:
        nonlocal refreshed
        refreshed += 1
        os.utime(tmp_path / name, ns=(refreshed, time.time_ns() - int(skew * 1e9) + refreshed))
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(Busy):
        exclusive(folder, patience=1)
    assert refreshed and name in os.listdir(folder)


def test_a_holder_that_stood_still_notices_that_its_lock_is_gone(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    with held_elsewhere(tmp_path, "save") as (process, name):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        os.utime(tmp_path / name, (0, 0))
        exclusive(folder, patience=0.01).release()
        process.send_signal(signal.SIGCONT)
        process.stderr = None
        process.communicate("\n")
        assert process.returncode == 1  # LockLost


def test_a_lock_is_kept_fresh(folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    lock = shared(folder)
    os.utime(tmp_path / lock.name, (0, 0))
    while (tmp_path / lock.name).stat().st_mtime == 0:
        time.sleep(0.01)
    (tmp_path / lock.name).unlink()
    with pytest.raises(LockLost):
        lock.confirm()
    lock.release()


def test_a_full_disk_has_a_file_for_a_prune(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make_spare(folder)
    make_spare(folder)
    real = os.open

    def full(path: str, flags: int, *args: object, **named: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(path, flags, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", full)
    for _ in range(2):
        with pytest.raises(OSError, match="quota"):
            shared(folder)
        if SPARE in os.listdir(folder):
            lock = exclusive(folder)
            assert os.listdir(folder) == [lock.name]
            lock.release()
    with pytest.raises(OSError, match="quota"):
        exclusive(folder)


def test_what_a_forked_child_has_is_its_parents(folder: int) -> None:
    lock = shared(folder)
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    lock.confirm()
    lock.release()


@pytest.mark.parametrize("name", ["prune", "save,aaaaaaaaaa,-1,1,0,x", "notes.txt", "a,b,c,d,e,f"])
def test_names_that_another_version_made_are_respected(folder: int, name: str) -> None:
    assert LockOwner.parse(name) is None
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    with pytest.raises(Busy) as caught:
        exclusive(folder)
    assert caught.value.holders == [None]


RACES = """
import os, random, sys, time
from torpor.util.lock_files import Busy, take
folder = os.open(sys.argv[1], os.O_RDONLY)
kind = sys.argv[2]
for _ in range(int(sys.argv[3])):
    insist = kind == "prune"
    try:
        lock = take(folder, kind, lambda other: insist or other == "prune", insist=insist, patience=30)
    except Busy:
        sys.exit(2)
    inside = sys.argv[1] + "/../inside"
    mark = f"{inside}/{kind}-{os.getpid()}"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    there = os.listdir(inside)
    if len(there) > 1 and (insist or any(name.startswith("prune") for name in there)):
        sys.exit(3)
    time.sleep(random.random() / 500)
    if random.random() < 0.02:
        os.unlink(mark)
        os.kill(os.getpid(), 9)
    os.unlink(mark)
    lock.release()
"""


def test_many_processes_some_of_which_are_killed(tmp_path: Path) -> None:
    """No prune is ever beside another one or a saver; each gets its turn, whoever died with a lock."""
    locks = tmp_path / "locks"
    locks.mkdir()
    (tmp_path / "inside").mkdir()
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(8):
            command = [sys.executable, "-c", RACES, str(locks), "prune" if number % 3 == 0 else "save", "40"]
            processes.append(stack.enter_context(subprocess.Popen(command)))
        assert {process.wait() for process in processes} <= {0, -signal.SIGKILL}

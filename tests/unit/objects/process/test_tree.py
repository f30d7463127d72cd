"""The tree: whose job a torpor-init stands for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from torpor import procfs
from torpor.dump.checkpoint import preflight
from torpor.errors import NotFound
from torpor.objects.process import tree
from torpor.restorer.capsule import INIT, init_arguments


@contextmanager
def init_of(*command: str, program: Path = INIT) -> Iterator[tuple[int, int]]:
    """The PIDs of a torpor-init and of the program that it stands for."""
    reader, writer = os.pipe()
    arguments = init_arguments(0, writer, (f"/bin/{command[0]}", *command))
    init = subprocess.Popen(arguments, executable=program, pass_fds=[writer])
    os.close(writer)
    found: list[int] = []
    try:
        while not (found := procfs.children(init.pid, [init.pid])) or procfs.stat(found[0]).comm != command[0].encode():
            assert init.poll() is None
        yield init.pid, found[0]
    finally:
        os.close(reader)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        init.kill()
        init.wait()


def test_the_job_of_an_init_that_an_upgrade_has_replaced(tmp_path: Path) -> None:
    program = Path(shutil.copy(INIT, tmp_path / "torpor-init"))
    with init_of("sleep", "1000", program=program) as (init, job):
        os.unlink(program)
        assert tree.job_of(init) == job
        os.kill(job, signal.SIGKILL)
        os.waitid(os.P_PID, init, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NotFound, match="has ended"):
            tree.job_of(init)


def test_a_process_that_calls_execve_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mappings lie elsewhere when they are read: no error, for the freeze takes what is there then."""
    nothing = subprocess.DEVNULL
    looked_at = procfs.flagged_mappings
    with subprocess.Popen(["sh", "-c", "read line; exec cat"], stdin=subprocess.PIPE, stdout=nothing) as shell:

        def and_then_execve(pid: int) -> list[procfs.FlaggedMapping]:
            found = looked_at(pid)
            if procfs.stat(pid).comm == b"sh":
                assert shell.stdin
                shell.stdin.write(b"\n")
                shell.stdin.flush()
                while procfs.stat(pid).comm != b"cat":
                    assert shell.poll() is None
            return found

        monkeypatch.setattr(procfs, "flagged_mappings", and_then_execve)
        preflight(shell.pid)
        assert procfs.stat(shell.pid).comm == b"cat"


def test_the_job_of_an_init_whose_child_ends_when_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with init_of("sleep", "1000") as (init, job):
        children = procfs.children
        monkeypatch.setattr(procfs, "children", lambda pid, tids: [gone.pid, *children(pid, tids)])
        assert tree.job_of(init) == job


def test_a_root_that_ends_when_it_was_seen_is_told() -> None:
    """It has no namespaces any more, while its child has some."""
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE) as root:
        assert root.stdout
        child = int(root.stdout.readline())
        try:
            seen = tree.walk(root.pid)
            root.kill()
            os.waitid(os.P_PID, root.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(NotFound, match=f"process {root.pid} has ended"):
                tree.unsupported(seen)
        finally:
            os.kill(child, signal.SIGKILL)


class Ending:
    """Ends a process when a path of it in /proc is looked at for the nth time."""

    def __init__(self) -> None:
        self.pid, self.left = 0, 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.pid and event in ("open", "os.listdir", "os.scandir"):
            self.look(arguments[0])

    def look(self, path: object) -> None:
        if self.pid and isinstance(path, str) and path.startswith(f"/proc/{self.pid}/"):
            self.left -= 1
            if self.left < 0:
                pid, self.pid = self.pid, 0
                os.kill(pid, signal.SIGKILL)
                while os.path.exists(f"/proc/{pid}"):  # its parent waits for it
                    time.sleep(0.001)


def test_a_process_that_ends_at_any_moment_of_the_look_before_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of it next: it is no part of the tree any more, and no error."""
    ending, readlink, moment = Ending(), os.readlink, 0

    def looked_at(path: str, *, dir_fd: int | None = None) -> str:
        ending.look(path)
        return readlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", looked_at)
    while not ending.pid:
        script = "sleep 1000 & echo $!; wait; read line"
        with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
            assert shell.stdout
            child = int(shell.stdout.readline())
            while procfs.stat(child).comm != b"sleep":
                assert shell.poll() is None
            ending.pid, ending.left = child, moment
            try:
                preflight(shell.pid)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                shell.kill()
        moment += 1
    ending.pid = 0
    assert moment > 20

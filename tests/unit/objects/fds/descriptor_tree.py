"""Real processes that hold descriptors, and what becomes of these when they are dumped and opened here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.users import User
from torpor.errors import Reason
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors
from torpor.objects.fds.descriptors import Opened

Acting = Callable[[Callable[[Path], None]], None]
"""Runs the body of a test as some user: the fixture `acting`."""

PRELUDE = r"""
import ctypes, fcntl, json, os, select, signal, socket, struct, sys, time
from torpor.remote.sys import syscall
from torpor.arch.x86_64 import NR
def ready(**fds):
    os.write(sys.stdout.fileno(), json.dumps({"pid": os.getpid(), **fds}).encode() + b"\n")
def wait():
    return sys.stdin.readline().strip()
"""


@contextmanager
def holder(code: str, **options: Any) -> Iterator[FdReference]:
    """A process that runs `code`, which calls ``ready(name=fd, ...)`` and ``wait()``, and is then stopped."""
    options.setdefault("stdin", subprocess.PIPE)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.DEVNULL)  # pytest gives a file without a name
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + code], start_new_session=True, **options)
    try:
        yield FdReference(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def dumped(code: str, **options: Any) -> tuple[dict[str, Any], Tree]:
    """What a process says that runs `code`, and its image: nothing that it holds is refused."""
    with holder(code, **options) as tree:
        said = tree.ready()
        assert tree.survey() == []
        return said, tree.dump()


class FdReference:
    """A process, or a tree of them, with descriptors known by name."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pids = [process.pid]
        self.fds: dict[str, int] = {}

    def ready(self) -> dict[str, Any]:
        """Wait until it says that it is ready, and with what."""
        assert self.process.stdout
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        if said["pid"] not in self.pids:
            self.pids.append(said["pid"])
        self.fds.update({name: value for name, value in said.items() if name != "pid"})
        return said

    def stop(self) -> None:
        """Stop every process and wait until it stands still."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)
            while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
                pass

    def go_on(self, line: str) -> str:
        """Let it run, tell it a line, and return what it answers."""
        assert self.process.stdin
        assert self.process.stdout
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def end(self) -> None:
        """Let it run, and end by itself."""
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
        assert self.process.stdin
        self.process.stdin.write(b"\n" * 10)
        self.process.stdin.flush()
        self.process.wait()

    def dump(self) -> Tree:
        """Stop it and take its descriptors, as they come back from a file."""
        self.stop()
        image = Tree()
        for pid in self.pids:
            image.processes.add(pid=pid)
        descriptors.describe(descriptors.grab(self.pids), image, lambda dev, ino: 0)
        read = Tree()
        read.ParseFromString(image.SerializeToString())
        return read

    def survey(self) -> list[Reason]:
        """What is said while it runs."""
        return descriptors.survey(self.pids)


@contextmanager
def opened(image: Tree, **options: Any) -> Iterator[Woken]:
    """The descriptions of an image, opened here."""
    options.setdefault("shared", no_memory)
    assert descriptors.validate(image, options.get("stdio", (0, 1, 2))) == []
    with descriptors.open_all(image, **options) as slots:
        yield Woken(image, slots)


def no_memory(index: int) -> int:
    """For images without memory that is shared."""
    raise AssertionError(f"shared memory {index} was asked for")


class Woken:
    """Descriptions that are open again."""

    def __init__(self, image: Tree, slots: Opened) -> None:
        self.image = image
        self.slots = slots.slots
        self.opened = slots

    def index(self, fd: int, pid: int | None = None) -> int:
        """The description that a process had as `fd`."""
        process = next(p for p in self.image.processes if pid in (None, p.pid))
        return next(entry.description for entry in process.fds if entry.fd == fd)

    def __call__(self, fd: int, pid: int | None = None) -> int:
        """The slot of what a process had as `fd`; without `pid`, the first process."""
        return self.slots[self.index(fd, pid)]


def acting_as(user: User, act: Callable[[], None]) -> None:
    """Run `act` in a process of `user`, and fail as it fails."""
    if os.geteuid() == user.uid:
        act()
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
            os.chdir(user.tmp)
            act()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        told = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"as {user.name}:\n{told}"

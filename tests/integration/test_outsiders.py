"""What a process that is saved shares with one that is not: said, or refused if a wake would fail for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.conformance.harness import PATIENCE, alive, wait_until
from tests.users import BIN, User

TORPOR = str(BIN / "torpor")
PYTHON = str(BIN / "python")

# Makes what it is asked for, forks a child that has it too, and ends when that and its standard input end.
SHARES = """
import ctypes, fcntl, mmap, os, select, signal, socket, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)

def mapped():
    fd = os.memfd_create("mapped")
    os.ftruncate(fd, 8192)
    made = mmap.mmap(fd, 8192)
    os.close(fd)
    return made

def bound(made, *where):
    made.bind(*where)
    if made.type == socket.SOCK_STREAM:
        made.listen()
    return made

def locked():
    made = open("locked", "w")
    fcntl.flock(made, fcntl.LOCK_EX)
    return made

def to_itself():
    listener = bound(socket.socket(), ("127.0.0.1", 0))
    return socket.create_connection(listener.getsockname()), listener.accept()[0], listener.close()

kinds = {
    "memory": lambda: mmap.mmap(-1, 4096),
    "mapped": mapped,
    "memfd": lambda: os.memfd_create("x"),
    "unlinked": tempfile.TemporaryFile,
    "pipe": os.pipe,
    "pair": socket.socketpair,
    "eventfd": lambda: os.eventfd(0),
    "timerfd": lambda: libc.timerfd_create(0, 0),
    "signalfd": lambda: libc.signalfd(-1, bytes(128), 0),
    "epoll": select.epoll,
    "inotify": lambda: libc.inotify_init1(0),
    "terminal": os.openpty,
    "file": lambda: open("file", "w"),
    "device": lambda: open("/dev/zero"),
    "fifo": lambda: os.mkfifo("fifo") or os.open("fifo", os.O_RDWR),
    "listener": lambda: bound(socket.socket(), ("127.0.0.1", 0)),
    "udp": lambda: bound(socket.socket(type=socket.SOCK_DGRAM), ("127.0.0.1", 0)),
    "unix": lambda: bound(socket.socket(socket.AF_UNIX), "name"),
    "abstract": lambda: bound(socket.socket(socket.AF_UNIX), "\\0" + os.getcwd()),
    "datagrams": lambda: bound(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "datagrams"),
    "connection": to_itself,
    "lock": locked,
}
kept = [kinds[kind]() for kind in sys.argv[1:]]
child = os.fork()
if not child:
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    while True:
        signal.pause()
print(child, flush=True)
os.waitpid(child, 0)
print("ended", flush=True)
sys.stdin.read()
"""
FINDS = """
import sys
from torpor.objects.fds import descriptors, outsiders
for one in outsiders.find(descriptors.grab([int(sys.argv[1])], content=False)):
    print(one.outsider, one.what)
"""
COPIED = {
    "memfd": "/memfd:x",
    "unlinked": "(deleted)",
    "pipe": "pipe:[",
    "pair": "socket:[",
    "eventfd": "[eventfd]",
    "timerfd": "[timerfd]",
    "signalfd": "[signalfd]",
    "epoll": "[eventpoll]",
    "inotify": "inotify",
    "terminal": "/dev/pts/",
}
ONLY_ONE = {
    "listener": "its port",
    "udp": "its port",
    "unix": "its name",
    "abstract": "its name",
    "datagrams": "its name",
    "connection": "its port",
    "lock": "its lock",
}


@contextmanager
def sharing(user: User, *kinds: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process, and the PID of its child that shares these with it."""
    pipe = subprocess.PIPE
    outsider = user.popen([PYTHON, "-c", SHARES, *kinds], stdin=pipe, stdout=pipe, text=True)
    try:
        child = int(outsider.stdout.readline())
        yield outsider, child
    finally:
        user.run(["kill", "-9", str(child)])
        outsider.communicate(timeout=PATIENCE)


def notices(user: User, pid: int, then: str) -> list[str]:
    """What a save says."""
    done = user.run([TORPOR, "checkpoint", str(pid), "--then", then, "--json"], check=True)
    found = [text for text in json.loads(done.stdout)["notices"] if "must be there" not in text]
    return found


@pytest.mark.parametrize("then", ["run", "kill"])
def test_what_is_another_one_after_a_wake_is_said(as_user: User, then: str) -> None:
    with sharing(as_user, *COPIED, "memory") as (outsider, child):
        (told,) = (one for one in notices(as_user, child, then) if "outside of the tree" in one)
        assert told.startswith(f"process {outsider.pid} (python), outside of the tree, has these open or mapped too")
        assert f"process {child} (python), fd " in told and told.endswith(" more")


def test_each_kind_is_seen(as_user: User) -> None:
    with sharing(as_user, *COPIED) as (outsider, child):
        found = as_user.run([PYTHON, "-c", FINDS, str(child)], check=True).stdout.splitlines()
        assert {line.split()[0] for line in found} == {str(outsider.pid)}
        assert not [kind for kind, link in COPIED.items() if not any(link in line for line in found)]


@pytest.mark.parametrize("kind", ["memory", "mapped"])
def test_memory_without_a_name_is_seen(as_user: User, kind: str) -> None:
    with sharing(as_user, kind) as (_, child):
        (told,) = notices(as_user, child, "run")
        assert told.endswith("will not share them with the woken program: shared memory") or "/memfd:mapped" in told


def test_what_is_opened_again_by_its_name_is_not_worth_a_word(as_user: User) -> None:
    with sharing(as_user, "file", "device", "fifo") as (_, child):
        assert not notices(as_user, child, "kill")


@pytest.mark.parametrize(("kind", "kept"), ONLY_ONE.items())
def test_what_only_one_can_have_is_not_killed_while_another_has_it(as_user: User, kind: str, kept: str) -> None:
    with sharing(as_user, kind) as (outsider, child):
        done = as_user.run([TORPOR, "checkpoint", str(child), "--then", "kill"])
        assert done.returncode == 10, done.stderr
        assert f"process {outsider.pid} (python), outside of the tree, has it open too, and keeps {kept}" in done.stderr
        assert alive(child)
        told = notices(as_user, child, "run")
        assert any(one.startswith("a wake is refused while") and kept in one for one in told)


def test_children_that_are_born_after_the_thaw_are_no_outsiders(as_user: User) -> None:
    """They have all that the tree has, and are not in the image."""
    forks = (
        "import os, socket, sys; pair = socket.socketpair(); open('beats', 'w').close();\n"
        "while not os.path.exists('end'):\n"
        "    if not os.fork(): os._exit(0 * len(os.listdir('/usr/bin')))\n"
        "    os.wait()"
    )
    null = subprocess.DEVNULL
    process = as_user.popen([PYTHON, "-c", forks], stdin=null, stdout=null, stderr=null)
    try:
        wait_until((as_user.tmp / "beats").exists, "it runs")
        for _ in range(5):
            assert not notices(as_user, process.pid, "run")
        (as_user.tmp / "end").touch()
        assert process.wait(PATIENCE) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


READS = """
import os, sys
sys.stdin.buffer.raw.read(5)
open("read", "w").close()
while not os.path.exists("end"):
    pass
"""


@pytest.mark.parametrize("kind", ["pipe", "fifo", "unix", "tcp"])
def test_input_that_was_not_read_is_said(as_user: User, kind: str) -> None:
    """It comes from outside, and a woken program reads from whoever wakes it."""
    with ExitStack() as stack:
        reader, writer = ends(kind, as_user, stack)
        os.write(writer, b"word\nbehind it")
        null = subprocess.DEVNULL
        process = as_user.popen([PYTHON, "-c", READS], stdin=reader, stdout=null, stderr=null)
        try:
            wait_until((as_user.tmp / "read").exists, "it has read a line")
            (told,) = (one for one in notices(as_user, process.pid, "kill") if "input" in one)
            assert told.startswith("9 bytes of input that the program has not read are not kept: process ")
        finally:
            process.kill()
            process.wait()


def ends(kind: str, user: User, stack: ExitStack) -> tuple[int, int]:
    """Two ends of a connection: of the second's words the first has part."""
    if kind == "pipe":
        made = os.pipe()
    elif kind == "fifo":
        path = user.tmp / "fifo"
        os.mkfifo(path)
        reader = os.open(user.own(path), os.O_RDONLY | os.O_NONBLOCK)
        made = reader, os.open(path, os.O_WRONLY)
        os.set_blocking(reader, True)
    elif kind == "unix":
        first, second = socket.socketpair()
        made = first.detach(), second.detach()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made = socket.create_connection(listener.getsockname()).detach(), listener.accept()[0].detach()
    for fd in made:
        stack.callback(os.close, fd)
    return made

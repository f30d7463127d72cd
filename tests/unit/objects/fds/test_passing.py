"""What is refused at one moment and not at the next: the checkpoint is tried again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from tests.users import User
from torpor.errors import Refused
from torpor.objects.fds import descriptors

COMES_AND_GOES = """
import socket, sys, time
from pathlib import Path
r, s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); r.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
print("ready", flush=True)
while not Path("stop").exists():
    s.send(b"x")
    time.sleep(0.005)
    r.recv(10)
    time.sleep(0.04)
print("all read", flush=True)
"""
STAYS = """
import socket, sys
r, s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); r.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
s.send(b"x")
print("ready", flush=True)
sys.stdin.readline()
print(r.recv(10).decode(), flush=True)
"""

NEVER_THE_SAME = """
import os, select, socket, sys, threading
def turn(start):
    kinds = [*socket.socketpair(), *socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), socket.create_server(("", 0)),
             select.epoll(), open("file", "w+")]
    fds = [one.fileno() for one in kinds] + [
        *os.pipe(), os.eventfd(1), os.memfd_create("m"), os.pidfd_open(os.getpid()), os.open("/", os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR)]
    while True:
        for number in range(start, start + 20):
            os.dup2(fds[(number + turn.count) % len(fds)], number)
        turn.count += 1
turn.count = 0
for start in 100, 200:
    threading.Thread(target=turn, args=(start,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
os._exit(0)
"""


def start(code: str, user: User) -> subprocess.Popen[bytes]:
    process: subprocess.Popen[bytes] = user.popen(
        [sys.executable, "-c", code],
        cwd=user.tmp,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_passes_is_waited_for(root_account: User, tmp_path: Path) -> None:
    with start(COMES_AND_GOES, root_account) as process:
        for _ in range(5):
            torpor.checkpoint(process.pid, store=tmp_path / "store")
        (root_account.tmp / "stop").touch()
        assert process.stdout
        assert process.stdout.readline() == b"all read\n"


def test_what_does_not_pass_is_refused(root_account: User, tmp_path: Path) -> None:
    with start(STAYS, root_account) as process:
        with pytest.raises(Refused) as caught:
            torpor.checkpoint(process.pid, store=tmp_path / "store")
        assert all(reason.passing for reason in caught.value.reasons)
        assert process.communicate(b"\n")[0] == b"x\n"


def test_what_changes_while_one_looks_is_no_fault(root_account: User) -> None:
    with start(NEVER_THE_SAME, root_account) as process:
        for _ in range(100):
            for reason in descriptors.survey([process.pid]):
                assert f"process {process.pid} " in reason.subject
        assert process.stdin
        process.stdin.write(b"end\n")

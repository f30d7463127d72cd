"""What is refused at one moment and not at the next: the checkpoint is tried again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from tests.users import User
from torpor.errors import Refused

COMES_AND_GOES = """
import socket, sys, time
from pathlib import Path
r, s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); r.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
print("ready", flush=True)
while not Path("stop").exists():
    s.send(b"x")
    time.sleep(0.015)
    r.recv(10)
    time.sleep(0.015)
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


def start(code: str, user: User) -> subprocess.Popen[bytes]:
    process = user.popen(
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

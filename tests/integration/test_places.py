"""Directories and named pipes that a job had made and removed before it is woken from an earlier snapshot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.test_bundle import await_file
from tests.unit.objects.paths.test_small_files import is_older_than_a_job
from tests.users import BIN, User

JOB = r"""
import ctypes, os, shutil, signal, socket, stat, struct, sys
libc = ctypes.CDLL(None)
top = os.getcwd()
os.makedirs("session/work/deep"); os.chmod("session/work", 0o2750); os.utime("session/work/deep", (5, 5))
for name in ("open", "watched", "sockets"):
    os.mkdir("session/" + name); os.chmod("session/" + name, 0o1770)
with open("session/conf", "w") as file: file.write("small")
os.mkfifo("session/pipe"); os.chmod("session/pipe", 0o640)
pipe = os.open("session/pipe", os.O_RDWR | os.O_NONBLOCK); os.write(pipe, b"in it")
folder = os.open("session/open", os.O_RDONLY)
news = libc.inotify_init1(os.O_NONBLOCK)
for name in ("watched", "conf", "work/deep"):
    libc.inotify_add_watch(news, f"session/{name}".encode(), 0x302)  # IN_MODIFY, IN_CREATE, IN_DELETE
listener = socket.socket(socket.AF_UNIX); listener.bind("session/sockets/one"); listener.listen()
os.chdir("session/work/deep")
signal.pthread_sigmask(signal.SIG_BLOCK, {10})
open(top + "/ready", "w").close(); signal.sigwait({10})
if not os.path.exists(top + "/woken"):
    shutil.rmtree(top + "/session")
    sys.exit(0)
was = os.stat("."), os.stat("../../pipe")
said = [os.getcwd() == top + "/session/work/deep", oct(os.stat("..").st_mode), was[0].st_mtime, oct(was[1].st_mode)]
open("here", "w").close(); os.close(os.open("new", os.O_CREAT, dir_fd=folder)); said += sorted(os.listdir("../../open"))
said += [os.read(pipe, 100), os.path.samestat(os.fstat(pipe), was[1])]
open("../../watched/came", "w").close(); open("../../conf", "a").write("er")
raw = os.read(news, 4096)
while raw:
    number, mask, _, size = struct.unpack_from("iIII", raw)
    said.append((number, mask, raw[16:16 + size].rstrip(b"\0"))); raw = raw[16 + size:]
said.append(open("../../conf").read())
peer = socket.socket(socket.AF_UNIX); peer.connect("../../sockets/one")
said.append(oct(os.stat("../../sockets").st_mode))
open(top + "/draft", "w").write(repr(said)); os.rename(top + "/draft", top + "/said")
"""
SAID = [
    *(True, "0o42750", 5.0, "0o10640", "new", b"in it", True),
    *((3, 0x100, b"here"), (1, 0x100, b"came"), (2, 2, b""), "smaller", "0o41770"),
]


def begun(user: User, code: str = JOB) -> subprocess.Popen[Any]:
    """A job that is saved while it runs on."""
    job: subprocess.Popen[Any] = user.popen([sys.executable, "-c", code], stdin=-3, stdout=-3, stderr=-3)
    await_file(user.tmp / "ready")
    user.run([BIN / "torpor", "checkpoint", str(job.pid)], check=True)
    return job


def woken(user: User) -> subprocess.CompletedProcess[str]:
    (user.tmp / "woken").touch()
    return user.run([BIN / "torpor", "restore", "latest", "--detach"], cwd=Path("/"))


def test_what_the_job_had_made_is_made_anew(as_user: User) -> None:
    job = begun(as_user)
    os.kill(job.pid, 10)
    assert job.wait(100) == 0 and not (as_user.tmp / "session").exists()
    done = woken(as_user)
    assert done.returncode == 0, done.stderr
    for name in ("open", "watched", "sockets", "work/deep"):
        path = as_user.tmp / "session" / name
        assert f"the directory {path}, which the job had made, was missing and is made again" in done.stderr
        assert path.stat().st_uid == as_user.uid
    assert f"1 file was missing and is made again: {as_user.tmp / 'session/conf'}" in done.stderr
    assert f"the named pipe {as_user.tmp / 'session/pipe'}, which the job had made, was missing" in done.stderr
    os.kill(int(done.stdout), 10)
    await_file(as_user.tmp / "said")
    assert (as_user.tmp / "said").read_text() == repr(SAID)


def test_nothing_is_made_in_place_of_something_else_nor_what_the_job_had_not_made(as_user: User) -> None:
    older = as_user.tmp / "older"
    older.mkdir()
    os.chown(older, as_user.uid, as_user.gid)
    is_older_than_a_job(older)
    code = JOB.replace(
        'os.chdir("session/work/deep")', 'older = os.open("older", os.O_RDONLY); os.chdir("session/work/deep")'
    )
    job = begun(as_user, code)
    os.kill(job.pid, 10)
    assert job.wait(100) == 0
    older.rmdir()
    done = woken(as_user)
    assert done.returncode == 10 and f"{older}: it cannot be opened: No such file" in done.stderr
    assert not (as_user.tmp / "session").exists()
    older.mkdir()
    os.chown(older, as_user.uid, as_user.gid)
    (as_user.tmp / "session").symlink_to(older)
    done = woken(as_user)
    assert done.returncode == 10 and "a symbolic link leads to" in done.stderr, done.stderr
    assert os.listdir(older) == [], "nothing is made through a link"

"""Files that a snapshot has with it, and files that changed since: woken where they are gone, or are others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.users import BIN, User

JOB = """
exec 3<input 4>>log 5>results
read -r first <&3
echo "first $first" >&4
echo "half" >&5
: > ready
until [ -e go ]; do sleep 0.02; done
read -r second <&3
echo "second $second" >&4
echo "whole" >&5
exit 7
"""


def started(user: User) -> subprocess.Popen[Any]:
    """A job of a shell of its own, which has read half of its input."""
    nothing = subprocess.DEVNULL
    shutil.copy("/bin/bash", user.tmp / "shell")
    (user.tmp / "input").write_text("1\n2\n")
    (user.tmp / "job").write_text(JOB)
    for path in user.tmp.iterdir():
        os.chown(path, user.uid, user.gid)
    job: subprocess.Popen[Any] = user.popen(
        [user.tmp / "shell", user.tmp / "job"], cwd=user.tmp, stdin=nothing, stdout=nothing, stderr=nothing
    )
    await_file(user.tmp / "ready")
    return job


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def saved(user: User, job: subprocess.Popen[Any], *options: str, **more: Any) -> None:
    user.run([BIN / "torpor", "checkpoint", str(job.pid), "--then", "kill", *options], check=True, **more)
    assert job.wait(100) == -signal.SIGKILL


def woken(user: User, *options: str) -> subprocess.CompletedProcess[str]:
    (user.tmp / "go").touch()
    return user.run([BIN / "torpor", "restore", "latest", *options], cwd=Path("/"))


def test_a_job_is_woken_without_its_files(as_user: User) -> None:
    saved(as_user, started(as_user), "--bundle-files")
    for name in ("shell", "input", "job", "log", "results"):
        (as_user.tmp / name).unlink()
    done = woken(as_user)
    assert done.returncode == 7, done.stderr
    assert (as_user.tmp / "log").read_text() == "first 1\nsecond 2\n"
    assert (as_user.tmp / "results").read_text() == "half\nwhole\n"
    assert (as_user.tmp / "input").read_text() == "1\n2\n"
    assert not (as_user.tmp / "shell").exists(), "a program comes back in memory"


def test_an_explanation_makes_and_removes_nothing(as_user: User) -> None:
    program = (
        "import os, signal, socket, sys\n"
        "file = open('data', 'w+'); file.write('content'); file.flush()\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(os.path.abspath('socket')); listener.listen()\n"
        "open('ready', 'w').close()\n"
        "signal.pause()\n"
    )
    job = as_user.popen([sys.executable, "-c", program], cwd=as_user.tmp, stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    saved(as_user, job, "--bundle-files")
    (as_user.tmp / "data").unlink()
    before = {path: path.lstat().st_ino for path in as_user.tmp.iterdir()}
    done = as_user.run([BIN / "torpor", "restore", "--explain", "latest"], check=True)
    assert "mapping the vDSO" in done.stdout
    assert {path: path.lstat().st_ino for path in as_user.tmp.iterdir()} == before


def test_what_is_bundled_is_never_put_over_another_file(as_user: User) -> None:
    saved(as_user, started(as_user), "--bundle-files")
    (as_user.tmp / "shell").write_text("no program")
    (as_user.tmp / "input").write_text("3\n4\n")
    done = woken(as_user)
    assert done.returncode == 10, done.stderr
    assert "input: it was changed since" in done.stderr and "--files=as-they-are" in done.stderr
    done = woken(as_user, "--files", "as-they-are")
    assert done.returncode == 7, done.stderr
    assert (as_user.tmp / "log").read_text() == "first 1\nsecond 4\n"
    assert (as_user.tmp / "shell").read_text() == "no program"


def test_without_them_the_files_must_be_there(as_user: User) -> None:
    saved(as_user, started(as_user), env={"TORPOR_SMALL_FILES": "0"})
    (as_user.tmp / "shell").rename(as_user.tmp / "elsewhere")
    (as_user.tmp / "log").rename(as_user.tmp / "log.1")
    done = woken(as_user)
    assert done.returncode == 10
    assert f"the mapped file {as_user.tmp}/shell: it cannot be opened" in done.stderr
    assert f"the file {as_user.tmp}/log: it cannot be opened" in done.stderr
    assert not (as_user.tmp / "log").exists()
    (as_user.tmp / "elsewhere").rename(as_user.tmp / "shell")
    (as_user.tmp / "log.1").rename(as_user.tmp / "log")
    assert woken(as_user).returncode == 7


def test_a_failed_restore_leaves_none_of_them(as_user: User) -> None:
    saved(as_user, started(as_user), "--bundle-files")
    for name in ("input", "job"):
        (as_user.tmp / name).unlink()
    packs = list(as_user.tmp.rglob("*.pack"))
    assert packs
    for pack in packs:
        pack.chmod(0o600)
        with pack.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))
    done = woken(as_user)
    assert done.returncode == 31, done.stderr
    assert not (as_user.tmp / "input").exists() and not (as_user.tmp / "job").exists()


OWN = """
import mmap, os, shutil, signal, subprocess

silly = open(".nfs000000000000abcd00000001", "w+b")
silly.write(b"x" * (5 << 20)); silly.flush()
with open(".fuse_hidden0000abcd00000001", "w+b") as file:
    file.write(b"y" * 5000); file.flush()
    hidden = mmap.mmap(file.fileno(), 5000)
with open("library", "wb") as file:
    file.write(b"z" * 5000)
with open("library", "rb") as file:
    library = mmap.mmap(file.fileno(), 5000, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
with open("unpacked", "w") as file:
    file.write("old")
os.utime("unpacked", (1e9, 1e9))
unpacked = open("unpacked")
shutil.copy("/bin/cat", "program")
child = subprocess.Popen(["./program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"a"); child.stdin.flush(); assert os.read(child.stdout.fileno(), 1) == b"a"
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
open("ready", "w").close()
while not os.path.exists("go"):
    signal.sigtimedwait([signal.SIGUSR1], 0.02)
assert os.pread(silly.fileno(), 6 << 20, 0) == b"x" * (5 << 20) and os.fstat(silly.fileno()).st_nlink == 0
assert hidden[:] == b"y" * 5000 and library[:] == b"z" * 5000 and unpacked.read() == "old"
child.stdin.write(b"b"); child.stdin.close()
assert child.stdout.read() == b"b" and child.wait() == 0
raise SystemExit(7)
"""
OF_ITS_OWN = (".nfs000000000000abcd00000001", ".fuse_hidden0000abcd00000001", "library", "unpacked", "program")


def test_what_a_job_made_may_be_gone_at_its_wake(as_user: User) -> None:
    """Also what it has mapped privately, what it runs, what looks old, and what its file system removes at its end."""
    job = as_user.popen([sys.executable, "-c", OWN], cwd=as_user.tmp, stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    saved(as_user, job)
    for name in OF_ITS_OWN:
        (as_user.tmp / name).unlink()
    done = woken(as_user)
    assert done.returncode == 7, done.stderr


KILLED = """
import os, signal, sys, torpor
from torpor.objects.paths import bundle
def half(fd, pages, size, reader):
    os.write(fd, b"x" * (size // 2))
    os.kill(os.getpid(), signal.SIGKILL)
bundle.fill = half
torpor.restore("latest")
"""
SYNCED = """
import os, torpor
from torpor.objects.paths.opener import Opener
sync, name, synced = os.fsync, Opener.rename, set()
def noted(fd):
    sync(fd)
    synced.add(os.fstat(fd).st_ino)
def named(self, draft, new):
    assert os.stat(draft).st_ino in synced, "if the host crashes, the name may be on disk and the content not"
    name(self, draft, new)
os.fsync, Opener.rename = noted, named
print(torpor.restore("latest", detach=True).pid)
"""
READER = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {10})  # one that comes before it is waited for is not lost
file = open("large", "r+b")
open("ready", "w").close(); signal.sigwait({10})
open("draft", "w").write(str(file.read() == b"x" * (8 << 20))); os.rename("draft", "said")
"""


def test_a_half_filled_file_is_neither_left_nor_taken(as_user: User) -> None:
    """A restore is killed while it puts a file back: nothing has the file's name, and the next one begins anew."""
    large = as_user.tmp / "large"
    large.write_bytes(b"x" * (8 << 20))
    os.chown(large, as_user.uid, as_user.gid)
    was = large.stat()
    job = as_user.popen([sys.executable, "-c", READER], stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    saved(as_user, job, "--bundle-files")
    large.unlink()
    assert as_user.run([sys.executable, "-c", KILLED], cwd=Path("/")).returncode == -signal.SIGKILL
    assert not large.exists()
    (left,) = as_user.tmp.glob(".torpor-*")
    # What an older Torpor left: all that is known of the file is right but for its content.
    large.write_bytes(b"x" * (4 << 20) + bytes(4 << 20))
    os.chown(large, as_user.uid, as_user.gid)
    os.utime(large, ns=(was.st_mtime_ns, was.st_mtime_ns))
    restore: list[str | Path] = [BIN / "torpor", "restore", "latest", "--detach"]
    done = as_user.run(restore, cwd=Path("/"))
    assert done.returncode == 10 and "large: it was changed since" in done.stderr, done.stderr
    large.unlink()
    done = as_user.run([sys.executable, "-c", SYNCED], cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert not left.exists(), "it is removed, and not filled further"
    assert large.stat().st_mtime_ns == was.st_mtime_ns and large.stat().st_mode == was.st_mode
    os.kill(int(done.stdout), 10)
    await_file(as_user.tmp / "said")
    assert (as_user.tmp / "said").read_text() == "True"


def test_small_files_that_the_job_removed_are_made_anew(as_user: User) -> None:
    code = """
import mmap, os, signal, sys
os.makedirs("session/inner", mode=0o750)
a = open("session/inner/journal", "w+"); a.write("journal"); a.flush(); os.chmod("session/inner/journal", 0o640)
b = os.open("session/counters", os.O_CREAT | os.O_RDWR); os.ftruncate(b, 32768); m = mmap.mmap(b, 32768); os.close(b)
m[:4] = b"1234"
signal.pthread_sigmask(signal.SIG_BLOCK, {10})  # one that comes before it is waited for is not lost
open("ready", "w").close(); signal.sigwait({10})
if not os.path.exists("woken"):
    for name in ("inner/journal", "counters", "inner", ""):
        path = "session/" + name
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    sys.exit(0)
a.write(" of two"); a.flush(); m[4:8] = b"5678"
text = open("session/inner/journal").read(), open("session/counters", "rb").read(10), len(m)
said = [*text, oct(os.stat("session/inner").st_mode), oct(os.stat("session/inner/journal").st_mode)]
open("draft", "w").write(repr(said)); os.rename("draft", "said")
"""
    job = as_user.popen([sys.executable, "-c", code], stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    as_user.run([BIN / "torpor", "checkpoint", str(job.pid)], check=True)
    os.kill(job.pid, 10)
    assert job.wait(100) == 0 and not (as_user.tmp / "session").exists()
    (as_user.tmp / "woken").touch()
    done = as_user.run([BIN / "torpor", "restore", "latest", "--detach"], cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    os.kill(int(done.stdout), 10)
    await_file(as_user.tmp / "said")
    said = (as_user.tmp / "said").read_text()
    assert said == repr(["journal of two", b"12345678\0\0", 32768, "0o40750", "0o100640"])
    assert (as_user.tmp / "session").stat().st_uid == as_user.uid


def test_files_of_a_woken_job_are_still_its_own(as_user: User) -> None:
    """What it made before it was saved for the first time is in later snapshots, too."""
    code = """
import os, signal
with open("made", "w") as file: file.write("by the job")
reader = open("made")
signal.pthread_sigmask(signal.SIG_BLOCK, {10})
open("ready", "w").close(); signal.sigwait({10})
open("draft", "w").write(reader.read()); os.rename("draft", "said")
"""
    job = as_user.popen([sys.executable, "-c", code], stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    saved(as_user, job)
    restore: list[str | Path] = [BIN / "torpor", "restore", "latest", "--detach"]
    for _ in range(2):
        pid = as_user.run(restore, cwd=Path("/"), check=True).stdout.strip()
        as_user.run([BIN / "torpor", "checkpoint", pid, "--then", "kill"], check=True)
    (as_user.tmp / "made").unlink()
    os.kill(int(as_user.run(restore, cwd=Path("/"), check=True).stdout), 10)
    await_file(as_user.tmp / "said")
    assert (as_user.tmp / "said").read_text() == "by the job"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_that_moved_on_is_not_woken_in_silence(as_user: User, journal: str) -> None:
    code = f"""
import os, signal, sqlite3
signal.pthread_sigmask(signal.SIG_BLOCK, {{10}})  # one that comes before it is waited for is not lost
base = sqlite3.connect("a.db", isolation_level=None)
base.execute("pragma journal_mode={journal}")
base.execute("create table t(a integer primary key, c int)")
base.executemany("insert into t(c) values(?)", [(0,)] * 100)
base.execute("begin")
base.execute("update t set c=c+1")
open("ready", "w").close(); signal.sigwait({{10}})
base.execute("commit")
base.execute("update t set c=c+1 where a % 2")
open("draft", "w").write(str(base.execute("select sum(c) from t").fetchone())); os.rename("draft", "said")
signal.pause()
"""
    job = as_user.popen([sys.executable, "-c", code], stdin=-3, stdout=-3, stderr=-3)
    await_file(as_user.tmp / "ready")
    as_user.run([BIN / "torpor", "checkpoint", str(job.pid)], check=True)
    os.kill(job.pid, 10)
    await_file(as_user.tmp / "said")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    done = as_user.run([BIN / "torpor", "restore", "latest", "--detach"], cwd=Path("/"))
    assert done.returncode == 10 and "--files=as-they-are" in done.stderr, done.stderr
    changed = "a.db" if journal == "delete" else "a.db-shm"
    assert f"{changed}: " in done.stderr, done.stderr


def test_the_newest_that_can_be_woken_is_named(as_user: User) -> None:
    code = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {10})  # one that comes before it is waited for is not lost
open("ready", "w").close(); signal.sigwait({10})
temporary = open("temporary", "w")
open("now", "w").close(); signal.sigwait({10})
"""
    job = as_user.popen([sys.executable, "-c", code], stdin=-3, stdout=-3, stderr=-3)
    checkpoint: list[str | Path] = [BIN / "torpor", "checkpoint", str(job.pid)]
    await_file(as_user.tmp / "ready")
    saved = [as_user.run(checkpoint, check=True).stdout.strip() for _ in range(2)]
    with as_user.popen(["sleep", "1000"], stdin=-3, stdout=-3, stderr=-3) as other:  # its snapshot is another job's
        as_user.run([BIN / "torpor", "checkpoint", str(other.pid), "--then", "kill"], check=True)
    os.kill(job.pid, 10)
    await_file(as_user.tmp / "now")
    last = as_user.run([*checkpoint, "--then", "kill"], env={"TORPOR_SMALL_FILES": "0"}, check=True).stdout.strip()
    assert job.wait(100) == -signal.SIGKILL
    (as_user.tmp / "temporary").unlink()
    (store,) = {path.parent for path in as_user.tmp.rglob("snapshots")}
    store.rename(as_user.tmp / "a store")
    done = as_user.run([BIN / "torpor", "restore", "--store", as_user.tmp / "a store", "latest"])
    assert f"`torpor restore --store '{as_user.tmp}/a store' {saved[1]}`" in done.stderr
    (as_user.tmp / "a store").rename(store)
    for options in ([], ["--files", "as-they-are"], ["--explain"]):
        done = as_user.run([BIN / "torpor", "restore", "latest", *options])
        assert done.returncode == 10 and "temporary: it cannot be opened" in done.stderr
        assert f"an earlier one can be woken: `torpor restore {saved[1]}`" in done.stderr
    done = as_user.run([BIN / "torpor", "restore", last])
    assert done.returncode == 10 and "earlier one" not in done.stderr, "it was asked for by its name"


ROLLED = """
import os, sqlite3, sys, time
base = sqlite3.connect("base.db", isolation_level=None)
base.execute("pragma journal_mode=wal")
base.execute("create table steps (number)")
log, place = open("log", "a", buffering=1), open("place", "w+b", buffering=0)
for number in range(1, 4):
    base.execute("insert into steps values (?)", (number,))
    print(number, file=log)
    os.pwrite(place.fileno(), b"%d" % number * 5000, 0)
    open(f"done-{number}", "w").close()
    while not os.path.exists(f"go-{number}"):
        time.sleep(0.01)
assert base.execute("select group_concat(number) from steps").fetchone() == ("1,2,3",)
assert open("log").read() == "1\\n2\\n3\\n"
assert open("place").read() == "3" * 5000
"""


def test_a_job_goes_back_in_time_together_with_its_files(as_user: User) -> None:
    null = subprocess.DEVNULL
    job = as_user.popen([sys.executable, "-c", ROLLED], cwd=as_user.tmp, stdin=null, stdout=null, stderr=null)
    try:
        await_file(as_user.tmp / "done-1")
        patterns = ("*.db*", "log", str(as_user.tmp / "p*"), "*.csv")
        files = [word for pattern in patterns for word in ("--with-files", pattern)]
        command: list[str | Path] = [BIN / "torpor", "checkpoint", str(job.pid)]
        done = as_user.run([*command, *files, "--stats"], check=True, env={"TORPOR_SMALL_FILES": "0"})
        assert "no file that it has open for writing matches '*.csv'" in done.stderr
        assert "base.db-shm is mapped so that writes reach it" in done.stderr, "so it stood still"
        assert re.search(r"it stood still for \d+ ms", done.stderr), "and says for how long"
        (as_user.tmp / "go-1").touch()
        await_file(as_user.tmp / "done-2")
    finally:
        job.kill()
        job.wait()
    (as_user.tmp / "go-2").touch()
    (as_user.tmp / "go-3").touch()
    refused = woken(as_user)
    assert (refused.returncode, "place: it was changed since" in refused.stderr) == (10, True)
    refused = woken(as_user, "--files=rolled-back")
    assert refused.returncode == 0, refused.stderr

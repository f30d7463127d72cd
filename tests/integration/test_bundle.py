"""Files that a snapshot has with it, and files that changed since: woken where they are gone, or are others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

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
    deadline = time.monotonic() + 20
    while not (user.tmp / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return job


def saved(user: User, job: subprocess.Popen[Any], *options: str) -> None:
    user.run([BIN / "torpor", "checkpoint", str(job.pid), "--then", "kill", *options], check=True)
    assert job.wait(20) == -signal.SIGKILL


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
    saved(as_user, started(as_user))
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

"""Root of a user namespace that is not the host's own (``unshare -Ur``, a container without root) is a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor import procfs

WITHIN = ["unshare", "--user", "--map-root-user"]
JOB = r"""
import os, signal, subprocess, sys
import torpor
from torpor import procfs
print(os.geteuid(), procfs.is_root())
nothing = subprocess.DEVNULL
program = "import os, pty; ends = pty.openpty(); open('began', 'w'); os.read(0, 1); open('went on', 'w')"
os.mkfifo("fifo")
fifo = os.open("fifo", os.O_RDWR)
child = subprocess.Popen([sys.executable, "-c", program], stdin=fifo, stdout=nothing, stderr=nothing)
while not os.path.exists("began"):
    assert child.poll() is None
saved = torpor.checkpoint(child.pid, store="store", then="kill")
child.wait()
job = torpor.restore(saved, store="store", stdio=(fifo, 1, 2))
os.write(fifo, b"\n")
print(job.wait(), os.path.exists("went on"))
"""


def _within(code: str, directory: Path) -> list[str]:
    command = [*WITHIN, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(autouse=True)
def _allowed() -> None:
    if subprocess.run([*WITHIN, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may make no user namespaces here")


def test_its_root_is_not_root(tmp_path: Path) -> None:
    code = "import os; from torpor import procfs; print(os.geteuid(), procfs.is_root())"
    assert _within(code, tmp_path) == ["0", "False"]
    if procfs.in_initial_user_namespace():
        assert procfs.is_root() == (os.geteuid() == 0)


def test_a_job_of_its_root_is_kept_and_woken(tmp_path: Path) -> None:
    """It may set no groups, and gives terminals and files to nobody."""
    assert _within(JOB, tmp_path) == ["0", "False", "0", "True"]

"""The fixtures themselves: who a test acts as, and that a leak is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.leaks import MARK, Before
from tests.users import PROVE, User


def test_acts_as_whom_it_says(as_user: User) -> None:
    done = as_user.run(["sh", "-c", "id -u; id -G; pwd; echo $HOME; command -v torpor"], check=True)
    uid, groups, cwd, home, torpor = done.stdout.splitlines()
    assert int(uid) == as_user.uid
    assert (groups == str(as_user.gid)) or not as_user.is_root
    assert cwd == str(as_user.tmp)
    assert home == str(as_user.home)
    assert torpor == f"{sys.prefix}/bin/torpor"


def test_every_restore_is_proven(as_user: User) -> None:
    """In tests and in what they start, whoever does it."""
    done = as_user.run(["sh", "-c", f"echo ${PROVE}"], check=True)
    assert (os.environ[PROVE], done.stdout) == ("1", "1\n")


def test_an_ordinary_user_has_no_capabilities(ordinary_account: User) -> None:
    status = ordinary_account.run(["cat", "/proc/self/status"], check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


def test_a_process_left_behind_is_named_and_ended() -> None:
    before = Before.now()
    child = subprocess.Popen(["sleep", "1000"])
    (leak,) = before.left(os.environ[MARK], patience=0.1)
    assert leak.startswith(f"process {child.pid} (sleep 1000")
    child.wait()


def test_a_mark_outlives_the_parent(no_leaks: str) -> None:
    before = Before.now()
    pid = int(subprocess.check_output(["sh", "-c", "setsid sleep 1000 >/dev/null & echo $!"]))
    # In the moment of an execve a process has no environment.
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        time.sleep(0.001)
    (leak,) = before.left(no_leaks, patience=0.1)
    assert f"process {pid} " in leak

"""The ways to wake a job: natively, with all its user's rights, or in a capsule, and what is said of it."""

from __future__ import annotations

import grp
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.harness import wait_until
from tests.users import BIN, User

TORPOR = str(BIN / "torpor")

# When told to, tells what it is, and the PID of a child of its.
JOB = """
import os, subprocess, time
with open("ready.new", "w") as ready:
    print(os.getpid(), file=ready)
os.rename("ready.new", "ready")
while not os.path.exists("tell"):
    time.sleep(0.01)
namespaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt")]
child = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
group = int(open("group").read())
try:
    os.chown("ready", -1, group)
    changed = os.stat("ready").st_gid == group
except OSError as error:
    changed = error.strerror
with open("told.new", "w") as told:
    capabilities = [line for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff", "CapAmb"))]
    print(os.getpid(), child, sorted(os.getgroups()), changed, *namespaces, sep="\\n", file=told)
    print(*(line.split()[1] for line in capabilities), file=told)
os.rename("told.new", "told")
"""
AMBIENT = ("--inh-caps=+checkpoint_restore", "--ambient-caps=+checkpoint_restore")


class Sleeper:
    """A job that was saved and killed, of a user who is in a second group; and that user's command line."""

    def __init__(self, user: User, group: int) -> None:
        self.user, self.group = user, group
        (user.tmp / "group").write_text(str(group))
        process = subprocess.Popen(
            # All that it refers to by its PID, its parent and its session's leader, ends with it.
            self._as_user(TORPOR, "run", "--", str(BIN / "python"), "-c", JOB),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._options(),
        )
        try:
            wait_until((user.tmp / "ready").exists, "it runs")
            self.pid = (user.tmp / "ready").read_text().strip()
            self.torpor("checkpoint", self.pid, "--then", "kill")
            assert process.wait(20) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()

    def torpor(self, *words: str, privileges: tuple[str, ...] = (), code: int = 0) -> str:
        """What the command says; what it notes on the way comes last."""
        done = subprocess.run(
            self._as_user(TORPOR, *words, privileges=privileges),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
            **self._options(),
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def woken(self, *words: str, privileges: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """What the job tells of itself, and what the command says."""
        (self.user.tmp / "told").unlink(missing_ok=True)
        (self.user.tmp / "tell").touch()
        said = self.torpor("restore", "latest", *words, privileges=privileges)
        return (self.user.tmp / "told").read_text().splitlines(), said

    def _as_user(self, *command: str, privileges: tuple[str, ...] = ()) -> list[str]:
        ids = [f"--reuid={self.user.uid}", f"--regid={self.user.gid}", f"--groups={self.user.gid},{self.group}"]
        return ["setpriv", *ids, *privileges, *command]

    def _options(self) -> dict[str, object]:
        return {"cwd": self.user.tmp, "env": self.user.env, "start_new_session": True}


@pytest.fixture
def sleeper(ordinary_account: User) -> Iterator[Sleeper]:
    if os.geteuid():
        pytest.skip("it takes root to be a user of another group")
    yield Sleeper(ordinary_account, grp.getgrnam("games").gr_gid)


def _own_namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt")]


def test_a_capsule_loses_groups_and_says_so(sleeper: Sleeper) -> None:
    told, said = sleeper.woken()
    assert told[0] == sleeper.pid
    assert told[3] == "Invalid argument"  # a group that is not mapped
    assert told[4] != _own_namespaces()[0]
    assert "torpor: note: it is in a capsule, where it cannot give files to your groups games" in said


def test_the_right_to_choose_pids_wakes_natively(sleeper: Sleeper) -> None:
    """CAP_CHECKPOINT_RESTORE alone: no namespace, and the user's groups count."""
    told, said = sleeper.woken(privileges=AMBIENT)
    assert (told[0], told[2:4]) == (sleeper.pid, [str(sorted({sleeper.user.gid, sleeper.group})), "True"])
    assert told[4:7] == _own_namespaces()
    assert set(told[7]) == {"0", " "}, "it has none of the capabilities by which it was woken"
    assert said == ""


def test_native_or_not_at_all(sleeper: Sleeper) -> None:
    told, _ = sleeper.woken("--as", "native", privileges=AMBIENT)
    assert told[4:7] == _own_namespaces()
    refused = sleeper.torpor("restore", "latest", "--as", "native", code=10)
    assert "CAP_CHECKPOINT_RESTORE" in refused
    assert "--as=capsule" in refused


def test_a_capsule_when_asked_for(sleeper: Sleeper) -> None:
    told, _ = sleeper.woken("--as", "capsule", privileges=AMBIENT)
    assert told[4] != _own_namespaces()[0]


def test_children_in_a_capsule_count_from_the_hosts_number(sleeper: Sleeper) -> None:
    """Two woken jobs must not meet in one /tmp/x.$$: their children are numbered like those outside."""
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    children = []
    for _ in range(2):
        told, _ = sleeper.woken("--as", "capsule")
        children.append(int(told[1]))
    assert last < children[0] < children[1]

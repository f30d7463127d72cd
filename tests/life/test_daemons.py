"""Daemons of a job, below which nobody of the job is left, are saved, killed and woken with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conformance.building import HERE, build
from tests.conformance.harness import Failed, wait_until
from tests.life.life import PATIENCE, Life, below, name_of
from tests.users import BIN, User

# Leaves a daemon of each kind; each writes again and again what it is.
JOB = """
import os, time

def leave(name, *steps):
    if os.fork():
        os.wait()
        return
    for step in steps:
        step()
    if os.fork():
        os._exit(0)
    while not os.path.exists("go"):
        with open(f"{name}.new", "w") as file:
            print(os.getpid(), os.getsid(0), os.getpgrp(), file=file)
        os.rename(f"{name}.new", name)
        time.sleep(0.01)
    open(f"{name}.over", "w").close()
    os._exit(0)

leave("of the job's session")
leave("of a session whose leader is gone", os.setsid)
leave("of a group whose leader is gone", lambda: os.setpgid(0, 0))
if os.fork() == 0:
    leave("of a session whose leader fell, too", os.setsid)
    if os.fork() == 0:
        os.setsid()
        leave("below a daemon")
        while not os.path.exists("go"):
            time.sleep(0.01)
    os._exit(0)
os.wait()
while not os.path.exists("end"):
    open("beat", "w").close()
    time.sleep(0.01)
"""
NAMES = [
    "of the job's session",
    "of a session whose leader is gone",
    "of a group whose leader is gone",
    "of a session whose leader fell, too",
    "below a daemon",
]


CHAINS = HERE / "storms/chains.c"


class Watched:
    """A job with its daemons."""

    def __init__(self, user: User, *command: str) -> None:
        self.directory = user.tmp / "in"
        self.directory.mkdir()
        user.own(self.directory)
        self.life = Life(user, [*command, BIN / "python", "-c", JOB], self.directory, run=True)

    def told(self, *others: str) -> dict[str, str]:
        """What each daemon says of itself, from now on; `others` must live, too."""
        for name in (*others, *NAMES):
            (self.directory / name).unlink(missing_ok=True)
        try:
            wait_until(lambda: all(map(self._is_there, (*others, *NAMES))), "all of them to live")
        except Failed as failure:
            raise Failed(f"{failure}\n{self.life.said}") from None
        return {name: (self.directory / name).read_text() for name in NAMES}

    def end(self) -> None:
        """End the job's first process, which is all that its waker waits for."""
        (self.directory / "end").touch()
        assert self.life.end(PATIENCE) == 0, self.life.said

    def end_daemons(self) -> None:
        (self.directory / "go").touch()
        wait_until(lambda: all(self._is_there(f"{name}.over") for name in NAMES), "their end")

    def _is_there(self, name: str) -> bool:
        return (self.directory / name).exists()


def test_daemons_are_woken_with_their_job(as_user: User) -> None:
    """Root's job lives in the session of a shell outside, the user's leads one."""
    job = Watched(as_user, *([] if as_user.is_root else ["setsid"]))
    try:
        before = job.told("beat")
        for _ in range(2):
            job.life.wake("native" if as_user.is_root else "capsule")
            assert job.told("beat") == before
        job.end()
        assert job.told() == before
        job.end_daemons()
    finally:
        job.life.kill()


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_daemons_that_make_the_next_and_end(as_user: User, times: int) -> None:
    """They fall to the job's init, and are gone before one can look at them."""
    directory = as_user.tmp / "in"
    directory.mkdir()
    as_user.own(directory)
    life = Life(
        as_user,
        [build(CHAINS, as_user.tmp)],
        directory,
        run=True,
        env={"CONFORM_DIR": str(directory), "CHAINS_FALL": "1"},
    )
    try:
        wait_until((directory / "ready").exists, "the chains to be there")
        for _ in range(times):
            life.wake("native" if as_user.is_root else "capsule")
        (directory / "go").touch()
        assert life.end(PATIENCE) == 0, life.said
        assert (directory / "verdict").read_text() == "ok"
    finally:
        life.kill()


def test_what_cannot_be_saved_is_named(ordinary_account: User) -> None:
    """A daemon with rights of its own, as ssh-agent has by its setgid bit, may not be traced by its user."""
    if not Path("/usr/bin/ssh-agent").exists():
        pytest.skip("needs ssh-agent")
    directory = ordinary_account.tmp / "in"
    directory.mkdir()
    ordinary_account.own(directory)
    words = "eval $(ssh-agent) >/dev/null; until [ -e go ]; do :>beat; sleep 0.01; done"
    life = Life(ordinary_account, ["bash", "-c", words], directory, run=True)
    agent = 0
    try:
        wait_until((directory / "beat").exists, "it runs")
        (agent,) = [pid for pid in below(life.process.pid) if name_of(pid) == "ssh-agent"]
        life.wake("capsule")
        assert f"process {agent} (ssh-agent), which the job has left in the background, is not kept" in life.said
        assert Path(f"/proc/{agent}").exists(), "it lives on"
        (directory / "go").touch()
        assert life.end(PATIENCE) == 0, life.said
    finally:
        life.kill()
        if agent:
            os.kill(agent, signal.SIGTERM)
            wait_until(lambda: not Path(f"/proc/{agent}").exists(), "its end")

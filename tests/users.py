"""The people that tests act as: root, and an ordinary user that is made for them when it is missing."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORDINARY = "torpor-test"
MADE_BY_TESTS = "made by Torpor's tests"  # the comment in /etc/passwd by which a user of ours is known
USERADD_EXISTS = 9  # useradd(8): the name is taken
USERDEL_HOME_IS_THERE = 12  # userdel(8): the home directory could not be removed

BIN = Path(sys.executable).parent
"""Where the `torpor` command of this environment lies."""
PROVE = "TORPOR_PROVE"
"""The environment variable by which every restore compares what it has built with the image."""


def granting(subgid: Path) -> list[str]:
    """The words before a command of root's that has it find a file as /etc/subgid."""
    return [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        'mount --bind "$0" /etc/subgid && exec "$@"',
        str(subgid),
    ]


@dataclass(frozen=True)
class User:
    """Someone to act as; everything runs in a private directory and finds this environment's `torpor`."""

    name: str
    uid: int
    gid: int
    tmp: Path
    """A directory of the user's own, gone after the test."""
    extra_env: Mapping[str, str]

    @property
    def home(self) -> Path:
        """The user's HOME, within `tmp`: what a test writes there goes away with it."""
        return self.tmp / "home"

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def env(self) -> dict[str, str]:
        """A login's environment: nothing of the tester's own, and the `torpor` under test on PATH."""
        return {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            **({PROVE: os.environ[PROVE]} if PROVE in os.environ else {}),
            **self.extra_env,
        }

    def popen(self, cmd: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Start `cmd` as this user, in a session of its own; `env` is added to the user's environment."""
        if os.geteuid() != self.uid:
            # setuid() from 0 also drops every capability (capabilities(7)): nothing of root is left.
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        options.setdefault("cwd", self.tmp)
        options.setdefault("start_new_session", True)
        return subprocess.Popen(list(map(str, cmd)), env={**self.env, **(env or {})}, **options)

    def run(
        self,
        cmd: Sequence[str | Path],
        *,
        input: str | None = None,
        timeout: float = 150,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run `cmd` as this user to its end and return its output as text."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        process = self.popen(cmd, env=env, text=True, **options)
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise AssertionError(f"{cmd} as {self.name} ended with {process.returncode}:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def own(self, path: Path) -> Path:
        """Give `path` to this user."""
        if os.geteuid() != self.uid:
            os.chown(path, self.uid, self.gid)
        return path


@contextmanager
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    """The ordinary user to act as: oneself, or as root ORDINARY, made if it is missing and then removed.

    Several test runs may share the user. Each holds a shared lock on its home directory; the last one to go
    removes it, and only if tests made it.
    """
    if os.geteuid():
        yield pwd.getpwuid(os.geteuid())
        return
    with _accounts():
        made = subprocess.run(
            ["useradd", "--create-home", "--shell", "/bin/sh", "--comment", MADE_BY_TESTS, ORDINARY],
            check=False,
            capture_output=True,
            text=True,
        )
        if made.returncode not in (0, USERADD_EXISTS):
            raise RuntimeError(f"cannot make the user {ORDINARY}: {made.stderr.strip()}")
        user = pwd.getpwnam(ORDINARY)
        home = os.open(user.pw_dir, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(home, fcntl.LOCK_SH)
    try:
        yield user
    finally:
        try:
            with _accounts():
                if user.pw_gecos.startswith(MADE_BY_TESTS) and _is_ours_alone(home):
                    # What a test that failed has left running belongs to nobody else, and would keep the user.
                    subprocess.run(["pkill", "-KILL", "-u", ORDINARY], check=False, capture_output=True)
                    gone = subprocess.run(["userdel", "--remove", ORDINARY], check=False, capture_output=True)
                    if gone.returncode == USERDEL_HOME_IS_THERE:  # somebody who was killed had just written there
                        shutil.rmtree(user.pw_dir)
                    else:
                        gone.check_returncode()
        finally:
            os.close(home)


@contextmanager
def _accounts() -> Iterator[None]:
    """Nobody else of the tests adds or removes users meanwhile.

    useradd(8) has locks of its own, files that name a PID: in the PID namespaces of two workers each takes the other's
    for stale, and the user then has another number than those who act as it believe.
    """
    folder = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _is_ours_alone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""The life of one command: undisturbed, or as a job that is run, and that is killed and woken on its way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.users import BIN, User, granting

TORPOR = str(BIN / "torpor")
AMBIENT = ("--inh-caps=+checkpoint_restore", "--ambient-caps=+checkpoint_restore")
IN_A_SESSION = ["sh", "-c", 'exec 2>/dev/null; (exec "$@" 2>&1); exit $?', "sh"]
"""A shell that leads the session and the process group, above the twin and above the job alike. What it says itself,
"Killed", is not the job's."""
PATIENCE = 100.0
"""Seconds in which a job that is refused at one moment must be savable at another one."""
PAUSE = 0.1
"""Seconds from one moment to the next."""


class Refused(Exception):
    """The job could be saved at no moment; the reasons, one a line."""


class Ended(Exception):
    """The job ended before it was saved."""


class Life:
    """A command that lives, with its output in one file and what Torpor says in another.

    Args:
        user: who runs it.
        command: its words.
        directory: where it runs, the user's own.
        run: as a job, by `torpor run`; else undisturbed.
        groups: the user's supplementary groups.
        env: variables besides the user's own.
    """

    def __init__(
        self,
        user: User,
        command: Sequence[str | Path],
        directory: Path,
        *,
        run: bool,
        groups: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self._user, self._directory, self._groups = user, directory, groups
        self._env = {**user.env, **(env or {}), "TORPOR_STORE": str(user.tmp / "store")}
        self._output, self._said = user.tmp / "output", user.tmp / "said"
        for path in (self._output, self._said):
            path.write_bytes(b"")
            user.own(path)
        self.refusals: list[str] = []
        """Why it was not saved at a moment that was tried."""
        prefix = [TORPOR, "run", "--"] if run else []
        self.process = self._start([*IN_A_SESSION, *prefix, *map(str, command)], self._output)
        self._shell = True

    @property
    def output(self) -> str:
        """What it has written to standard output and standard error."""
        return self._output.read_text(errors="replace")

    @property
    def said(self) -> str:
        """What Torpor's commands have said."""
        return self._said.read_text(errors="replace")

    def wake(self, way: str, meanwhile: Callable[[], object] | None = None) -> None:
        """Save it, which kills it, and wake it.

        Args:
            way: "native", "capsule", or "granted": in a capsule, where an administrator has granted the groups.
            meanwhile: what happens while it is away.

        Raises:
            Ended: it has come to its end before.
            Refused: it could not be saved, and lives.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._saved():
            if time.monotonic() > deadline:
                raise Refused("\n".join(dict.fromkeys(self.refusals)))
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PAUSE)
        # The shell says what ended torpor run, which is ended as its job.
        assert self.end(PATIENCE) == (128 + signal.SIGKILL if self._shell else -signal.SIGKILL)
        self._shell = False
        if meanwhile:
            meanwhile()
        privileges = AMBIENT if way == "native" and not self._user.is_root else ()
        before: list[str] = []
        if way == "granted":
            lines = self._user.tmp / "subgid"
            lines.write_text("".join(f"{self._user.name}:{gid}:1\n" for gid in self._groups))
            way, before = "capsule", granting(lines)
        command = [TORPOR, "restore", "latest", "--as", way]
        self.process = self._start(command, self._said, privileges, before)

    def end(self, seconds: float) -> int:
        """Wait for its end; the exit status, less than 0 for a signal.

        Raises:
            subprocess.TimeoutExpired: it lives on.
        """
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it, and all that is below it."""
        while (pids := below(self.process.pid)) or self.process.poll() is None:
            for pid in [*pids, self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _saved(self) -> bool:
        keepers = [pid for pid in below(self.process.pid) if name_of(pid) == "torpor-init"]
        if self.process.poll() is not None:
            raise Ended
        if not keepers:
            return False  # it has not begun, or is about to end
        before = self._said.stat().st_size
        saved = self._start([TORPOR, "checkpoint", str(keepers[0]), "--then", "kill"], self._said)
        if saved.wait(300) == 0:
            return True
        self.refusals.append(self._said.read_text()[before:].strip())
        return False

    def _start(
        self, command: Sequence[str], output: Path, privileges: Sequence[str] = (), before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        ids = [f"--reuid={self._user.uid}", f"--regid={self._user.gid}"]
        groups = ",".join(map(str, [self._user.gid, *self._groups]))
        with open(output, "ab") as file:
            return subprocess.Popen(
                [*before, "setpriv", *ids, f"--groups={groups}", *privileges, *command]
                if os.geteuid() == 0
                else command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._directory,
                env=self._env,
                start_new_session=True,
            )


def children(pid: int) -> list[int]:
    """The children of a process; none if it is gone."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def below(pid: int) -> list[int]:
    """All that descends from a process."""
    return [one for child in children(pid) for one in (child, *below(child))]


def name_of(pid: int) -> str:
    """The name of a process; empty if it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""

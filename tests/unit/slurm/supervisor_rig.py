"""A supervisor of a Slurm job with a cluster, an application and a store that are made up.

Real jobs on a real cluster are in tests/integration/test_slurm.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from tests.unit.slurm.slurm_job import LINE, environment
from torpor import Stats, processes
from torpor.image import Tree
from torpor.store import SnapshotInfo
from torpor_slurm import beginning, controller, saving, script_around, supervisor
from torpor_slurm.allocation import Allocation
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.guard import Guard
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options
from torpor_slurm.supervisor import Supervisor

PATIENCE = 100.0
SNAPSHOT = "20261123-000000000-aaaaaa"
"""What every save makes."""


class Application:
    """What is supervised, as a `Job` shows it."""

    def __init__(self) -> None:
        self.tree_pid = os.getpid()
        self.warnings: tuple[str, ...] = ()
        self.heard: list[int] = []
        self.code: int | None = None
        self.looks = 0
        self.end_after: int | None = None
        """Looks after which it has ended with 0 by itself."""
        self.waited = False
        self.catches: set[int] = set()
        """The signals that it is not killed by."""
        self.gives_in: Callable[[], None] | None = None
        """What happens when it is sent SIGTERM."""

    def send_signal(self, number: int) -> None:
        self.heard.append(number)
        if number == signal.SIGTERM and self.gives_in:
            self.gives_in()
            return
        if number in supervisor.WARNINGS | {signal.SIGKILL} and number not in self.catches:
            self.code = -number

    def poll(self) -> int | None:
        self.looks += 1
        if self.code is None and self.end_after is not None and self.looks > self.end_after:
            self.code = 0
        return self.code

    def wait(self) -> int:
        assert self.code is not None, "nobody has ended it"
        self.waited = True
        return self.code


class Listener:
    """A sentinel."""

    def __init__(self) -> None:
        self.starting = True
        self.news: list[str] = []
        self.signal: int | None = None

    def _take(self, what: str) -> bool:
        if self.news and self.news[0] == what:
            return bool(self.news.pop(0))
        return False

    def has_started(self) -> bool:
        return self._take("has_started")

    def ended(self) -> bool:
        return self._take("ended")


def opened(image: Tree) -> Any:
    """A snapshot of one process, open."""
    image.processes.add()
    info = SnapshotInfo("20261123-000000000-aaaaaa", "", "tree")
    return nullcontext(SimpleNamespace(info=info, body=image.SerializeToString()))


class Rig:
    """A supervisor in the middle of a run, and all that it touches."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        allocation = Allocation.here(environment())
        assert allocation is not None
        self.directory = JobDirectory(tmp_path / "store", "12", "c")
        self.directory.begin(0, "n1", 1.0, ["true"])
        self.app, self.sentinel = Application(), Listener()
        self.record = replace(JobRecord.parse(LINE), start=time.time() - 100, end=time.time() + 86400)
        self.silent = False
        self.late: list[JobRecord | None] = []
        """What the controller says before it says `record`; None: nothing."""
        self.saves: list[str] = []
        self.tags: list[dict[str, str]] = []
        self.fail: list[Exception | None] = []
        """What the next saves end in."""
        self.size, self.written = 1 << 20, 1 << 20
        self.notices: tuple[str, ...] = ()
        self.pruned = 0
        self.pinned: list[str] = []
        self.requeued: list[str] = []
        self.verbs: list[str] = []
        """How it was requeued."""
        self.allocation = allocation
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(script_around, "_name", lambda _: "slurmstepd")
        monkeypatch.setattr(Guard, "post", lambda _: None)
        self.tried = self.supervise(Options())
        monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(supervisor, "SHORT_POLL_SECONDS", 0.01)
        monkeypatch.setattr(saving, "FIRST_RETRY", 0.05)
        monkeypatch.setattr(controller, "RETRY", 0.05)
        monkeypatch.setattr(beginning, "FIRST_ANSWER", 0.2)
        monkeypatch.setattr(processes, "dies_of", lambda pid, number: number not in self.app.catches)
        monkeypatch.setattr(torpor, "checkpoint", self._checkpoint)
        monkeypatch.setattr(controller, "job_record", self._job_record)
        monkeypatch.setattr(controller, "requeue", self._requeue)
        monkeypatch.setattr(self.directory.store, "open", self._open)
        monkeypatch.setattr(self.directory, "prune", self._prune)
        monkeypatch.setattr(self.directory.store, "pin", self.pinned.append)

    def supervise(self, options: Options, ignored: frozenset[int] = frozenset()) -> Supervisor:
        given = processes.inherited_signals()._replace(ignored=ignored)
        self.tried = Supervisor(["true"], self.allocation, self.directory, options, given)
        self.tried.job, self.tried.record = self.app, self.record  # type: ignore[assignment]
        return self.tried

    def _checkpoint(
        self, pid: int, *, then: str, tags: dict[str, str], stats: Stats, with_files: tuple[str, ...], **_: object
    ) -> SnapshotInfo:
        assert (pid, with_files) == (self.app.tree_pid, self.tried.options.with_files)
        stats.pause_ns = 5_000_000
        self.saves.append(then)
        self.tags.append(tags)
        if self.fail and (error := self.fail.pop(0)) is not None:
            raise error
        if then == "kill":
            self.app.code = -signal.SIGKILL
        return SnapshotInfo(SNAPSHOT, "", "tree", size=self.size, written=self.written, notices=self.notices)

    def _job_record(self, job: str) -> JobRecord:
        assert job == "12"
        said = self.late.pop(0) if self.late else self.record
        if self.silent or said is None:
            raise SlurmError("Unable to contact slurm controller")
        return said

    def _requeue(self, job: str, *, hold: bool = False) -> None:
        self.requeued.append(job)
        self.verbs.append("requeuehold" if hold else "requeue")

    def _open(self, _: object) -> Any:
        return opened(Tree())

    def _prune(self, restarts: int, found: object) -> None:
        assert restarts == 0
        self.pruned += 1

    def say(self, **changes: Any) -> None:
        """What the controller says from now on."""
        self.record = replace(self.record, **changes)

    def preempt(self, grace: float = 60.0) -> None:
        self.say(preempt=time.time(), end=time.time() + grace)

    def warn(self, number: int = signal.SIGTERM) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def wake(self) -> object:
        return self.tried._wake()

    def watch(self) -> int:
        return self.tried._watch(self.sentinel)  # type: ignore[arg-type]

    @property
    def log(self) -> str:
        return (self.directory.path / "log").read_text()

"""Runs in a machine, as its ordinary user: does the job in the shared folder and writes down how each part went."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import torpor
from tests.conformance.building import named
from tests.conformance.harness import Actor, Stage, Subject, restored
from tests.leaks import MARK
from tests.users import PROVE
from tests.vm.machine import Job, Result
from torpor.processes import children

TORPOR = Path(sys.executable).with_name("torpor")
LAUNCHER = "launch"


class Guest:
    """What is there while a job is done."""

    def __init__(self, shared: Path, results: Path) -> None:
        self.shared = shared
        self.me = Actor("user", os.geteuid(), os.getegid())
        self._results = results.open("a")

    def attempt(self, test: str, act: Callable[[], str]) -> bool | None:
        """Do one thing and write down how it went: whatever goes wrong is the result of that test."""
        begun = time.monotonic()
        good: bool | None
        try:
            good, words = True, act()
        except pytest.skip.Exception as lacking:
            good, words = None, str(lacking)
        except Exception as error:
            good, words = False, f"{type(error).__name__}: {error}"
        result = Result(test, good, words, time.monotonic() - begun)
        self._results.write(json.dumps(asdict(result)) + "\n")
        self._results.flush()
        return good

    def stage(self, name: str) -> Stage:
        """A stage whose compiled programs are there already, on the machine's disk."""
        tempfile.tempdir = f"/var/tmp/{name}"
        Path(tempfile.tempdir).mkdir(exist_ok=True)
        stage = Stage([self.me])
        for program in (self.shared / "bin").iterdir():
            shutil.copy2(program, stage.programs)
        return stage


def doctor() -> str:
    """What the doctor says of this host; it must be content."""
    ran = subprocess.run([TORPOR, "doctor"], capture_output=True, text=True, check=False)
    said = (ran.stdout + ran.stderr).strip()
    if ran.returncode:
        raise AssertionError(said)
    return said


def left_running(stage: Stage, actor: Actor, name: str) -> str:
    """A program is saved twice while it runs, and is content."""
    with stage.play(named(name), actor) as subject:
        subject.wait_ready()
        for _ in range(2):
            stage.driver(actor).checkpoint(subject.root(), subject.directory / "store", "run")
        subject.go()
        subject.judged()
        subject.exited()
    return ""


def woken(stage: Stage, actor: Actor, name: str, way: str) -> str:
    """A program is killed and woken, and is content."""
    with stage.play(named(name), actor) as subject:
        subject.wait_ready()
        store = subject.directory / "store"
        snapshot = stage.driver(actor).checkpoint(subject.root(), store, "kill")
        subject.process = None
        _wake(stage, subject, snapshot, way)
    return ""


def in_series(stage: Stage, actor: Actor, name: str) -> str:
    """A program is saved three times in a series, with what it has written since, killed at last and woken."""
    with stage.play(named(name), actor) as subject:
        subject.wait_ready()
        store = subject.directory / "store"
        with torpor.Series() as series:
            for then in ("run", "run", "kill"):
                snapshot = torpor.checkpoint(subject.root(), store=store, then=then, series=series)
        subject.process = None
        _wake(stage, subject, snapshot.id, "capsule")
    return ""


def _wake(stage: Stage, subject: Subject, snapshot: str, way: str) -> None:
    job = restored(stage, subject, snapshot, way=way)
    subject.go()
    subject.judged()
    status = job.status()
    assert status == 0, f"exit status {status}: {subject.output()}"


def saved(guest: Guest, stage: Stage, name: str) -> str:
    """A program is saved and killed; its image and its folder are put where another machine finds them."""
    with stage.play(named(name), guest.me) as subject:
        subject.wait_ready()
        pid = subject.root()
        snapshot = stage.driver(guest.me).checkpoint(pid, subject.directory / "store", "kill")
        subject.process = None
        told = {
            "directory": str(subject.directory),
            "argv": [str(word) for word in subject.argv],
            "pid": subject.pid,
            "snapshot": snapshot,
        }
        kept = guest.shared / "saved" / name
        kept.mkdir(parents=True)
        (kept / "subject").write_text(json.dumps(told))
        subprocess.run(["tar", "-cPf", kept / "files.tar", "--format=posix", stage.base], check=True)
    return ""


def woken_here(guest: Guest, stage: Stage, kept: Path) -> str:
    """A program that another machine saved is woken on this one."""
    subprocess.run(["tar", "-xPf", kept / "files.tar"], check=True)
    told = json.loads((kept / "subject").read_text())
    subject = Subject(Path(told["directory"]), guest.me, told["argv"], stage.programs / LAUNCHER, pid=told["pid"])
    _wake(stage, subject, told["snapshot"], "capsule")
    return ""


YAMA: dict[int, tuple[int, str, str]] = {
    1: (
        0,
        "only the program that launched a job can freeze it: start jobs with `torpor run`",
        "You can freeze what you",
    ),
    2: (1, "nothing can be frozen (Yama's ptrace_scope is 2)", "sysctl kernel.yama.ptrace_scope=1"),
    3: (1, "nothing can be frozen (Yama's ptrace_scope is 3)", "ptrace_scope 3 lasts until the next boot"),
}
"""For each ptrace_scope, the doctor's exit code and what it says."""


def under_yama(scope: int) -> str:
    """The doctor says what can be frozen. `torpor run --every` saves under 1, else the job runs and it says why not."""
    status, *words = YAMA[scope]
    ran = subprocess.run([str(TORPOR), "doctor"], capture_output=True, text=True, check=False)
    said = " ".join((ran.stdout + ran.stderr).split())
    assert ran.returncode == status, said
    assert all(word in said for word in words), said
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        waits = f'until [ -n "$(ls {folder}/store/snapshots)" ]; do sleep 0.1; done' if scope == 1 else "sleep 5"
        save = [str(TORPOR), "run", "--every", "1", "--store", f"{folder}/store"]
        ran = subprocess.run([*save, "--", "sh", "-c", f"{waits}; exit 7"], capture_output=True, text=True, check=False)
        assert ran.returncode == 7, ran.stderr
        assert scope == 1 or f"ptrace_scope is {scope}" in ran.stderr or "trac" in ran.stderr, ran.stderr
        job = subprocess.Popen([str(TORPOR), "run", "--", "sleep", "1000"])
        try:
            while not (found := children(job.pid)) or not (below := children(found[0])):
                time.sleep(0.01)
            other = [str(TORPOR), "checkpoint", str(below[0]), "--store", f"{folder}/store"]
            refused = subprocess.run(other, capture_output=True, text=True, check=False)
            assert refused.returncode and not refused.stdout, refused.stdout
        finally:
            job.terminate()
            job.wait()
    return f"run: {ran.stderr.strip()}; a sibling: {refused.stderr.strip()}"


def main(shared: Path, results: Path) -> None:
    """Do the job."""
    os.environ[MARK] = uuid.uuid4().hex
    os.environ[PROVE] = "1"
    guest = Guest(shared, results)
    job = Job(**json.loads((shared / "job").read_text()))
    if job.scope:
        guest.attempt(f"Yama's ptrace_scope {job.scope}", lambda: under_yama(job.scope))
        return
    if job.doctor and not guest.attempt("doctor", doctor):
        return  # nothing works here, and it says so
    if not (job.programs or job.save or job.wake):
        return
    stage = guest.stage((shared / "name").read_text())
    for name in job.programs:
        guest.attempt(f"{name} left running", lambda: left_running(stage, guest.me, name))  # noqa: B023
        guest.attempt(f"{name} woken", lambda: woken(stage, guest.me, name, "capsule"))  # noqa: B023
    if job.programs:
        guest.attempt("series", lambda: in_series(stage, guest.me, "memory.c"))
    for name in job.save:
        guest.attempt(f"{name} saved", lambda: saved(guest, stage, name))  # noqa: B023
    for machine in job.wake:
        for kept in sorted((shared / machine).iterdir()):
            guest.attempt(f"{kept.name} of {machine} woken", lambda: woken_here(guest, stage, kept))  # noqa: B023
    stage.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

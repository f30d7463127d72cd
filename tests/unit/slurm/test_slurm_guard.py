"""A supervisor that hangs in its store: another process requeues the job in time."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor_slurm import controller, guard
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.guard import Guard
from torpor_slurm.run_options import Options

RUNNING = replace(JobRecord.parse(LINE), end=time.time() + 3600)
NOW, LATER = time.time() + 5, time.time() + 1000
PREEMPTED = replace(RUNNING, preempt=time.time())
PATIENCE = 60


class Watched:
    """A guard whose supervisor gives no sign; the answers of the controller, after which the supervisor ends."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(guard, "LOOK", 0.01)
        patch.setattr(guard, "SILENT", 0.0)
        patch.setattr(guard, "ASK", 0.0)
        patch.setattr(controller, "job_record", self._record)
        patch.setattr(controller, "requeue", self._requeue)
        self.reader, self.writer = os.pipe()
        self.answers: Iterator[JobRecord | None] = iter(())
        self.asked = 0
        self.requeued: list[str] = []
        self.refuses = 0

    def _record(self, job: str) -> JobRecord:
        assert job == "12"
        self.asked += 1
        answer = next(self.answers, False)
        if answer is False:
            os.write(self.writer, b".")  # its end
            return RUNNING
        if answer is None:
            raise SlurmError("it does not answer")
        return answer  # type: ignore[return-value]

    def _requeue(self, job: str) -> None:
        if self.refuses:
            self.refuses -= 1
            raise SlurmError("not now")
        self.requeued.append(job)

    def ends_after(self, looks: int, patch: pytest.MonkeyPatch) -> None:
        """The supervisor ends after so many looks."""
        ends = [True, *[False] * looks]
        patch.setattr(select, "select", lambda *_: ([self.reader] if ends.pop() else [], [], []))

    def watch(self, *answers: JobRecord | None, begun: bool = True, **options: Any) -> list[str]:
        self.answers = iter(answers)
        made = Guard("12", 0, Options(**options))
        made.sign(begun=begun)
        made.watch(self.reader)
        return self.requeued


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(monkeypatch)
    yield made
    os.close(made.reader)
    os.close(made.writer)


def test_a_job_that_is_preempted_is_requeued_when_its_grace_time_is_nearly_over(watched: Watched) -> None:
    assert watched.watch(RUNNING, replace(PREEMPTED, end=LATER), replace(PREEMPTED, end=NOW)) == ["12"]
    assert watched.asked == 3


def test_a_controller_that_does_not_answer_is_asked_again(watched: Watched) -> None:
    watched.refuses = 1
    near = replace(PREEMPTED, end=NOW)
    assert watched.watch(None, near, None, near) == ["12"]
    assert watched.asked == 4


@pytest.mark.parametrize(("on_timeout", "requeued"), [("requeue", ["12"]), ("stop", [])])
def test_the_time_limit(watched: Watched, on_timeout: str, requeued: list[str]) -> None:
    assert watched.watch(replace(RUNNING, end=LATER), replace(RUNNING, end=NOW), on_timeout=on_timeout) == requeued


@pytest.mark.parametrize(
    "record",
    [RUNNING, replace(RUNNING, state="CANCELLED"), replace(RUNNING, state="COMPLETING"), replace(RUNNING, restarts=1)],
    ids=["running", "cancelled", "completing", "requeued"],
)
def test_what_is_no_reason(watched: Watched, record: JobRecord) -> None:
    assert watched.watch(record) == []


def test_a_supervisor_that_gives_signs_is_not_asked_about(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SILENT", 1000.0)
    watched.ends_after(3, monkeypatch)
    assert watched.watch(replace(PREEMPTED, end=NOW)) == []
    assert watched.asked == 0


@pytest.mark.parametrize(("longest", "requeued"), [(0.0, ["12"]), (1000.0, [])])
def test_a_run_that_cannot_read_what_there_is(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, longest: float, requeued: list[str]
) -> None:
    monkeypatch.setattr(guard, "LONGEST_BEGIN", longest)
    watched.ends_after(3, monkeypatch)
    assert watched.watch(begun=False) == requeued
    assert watched.asked == 0


POSTS = """
import sys
from torpor_slurm.guard import Guard
from torpor_slurm.run_options import Options
held = open(sys.argv[1])
Guard("12", 0, Options()).post()
print(flush=True)
input()
"""


def test_its_process_holds_nothing_and_ends_with_the_supervisor(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", POSTS, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin and process.stdout
    process.stdout.readline()
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    place = Path("/proc", child)

    def until(condition: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, sorted(os.readlink(fd) for fd in (place / "fd").iterdir())
            time.sleep(0.01)

    until(
        lambda: sorted({os.readlink(fd).partition(":")[0] for fd in (place / "fd").iterdir()}) == ["/dev/null", "pipe"]
    )
    assert os.readlink(place / "cwd") == "/"
    process.stdin.close()
    process.wait()
    process.stdout.close()
    until(lambda: not place.exists() or (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z")

"""A job that requeues itself ends in its own way, and its next run begins anew."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.slurm.slurm_job import environment
from tests.unit.slurm.supervisor_rig import Rig
from torpor_slurm import own_requeue
from torpor_slurm.allocation import Allocation
from torpor_slurm.job_directory import RUN_TAG, JobDirectory
from torpor_slurm.run_options import Options

ARRAY = {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}


def scontrol(tmp_path: Path, more: Mapping[str, str] | None = None, code: int = 0) -> Callable[..., tuple[bool, bool]]:
    """Calls the stand-in: whether the real scontrol found the file, and whether it is there afterwards."""
    allocation = Allocation.here(environment(**(more or {})))
    assert allocation is not None
    directory = JobDirectory(tmp_path / "a store", "12", "c")
    directory.begin(0, "n1", 1.0)
    directory.write_stand_in("scontrol", own_requeue.script(directory, allocation))
    real = tmp_path / "real/scontrol"
    real.parent.mkdir()
    real.write_text(f'#!/bin/sh\nprintf "<%s>" "$@"\n[ -e "{directory.own_requeue}" ] && echo noted\nexit {code}\n')
    real.chmod(0o755)

    def call(*words: str) -> tuple[bool, bool]:
        path = f"{directory.stand_ins}:/nonesuch:{real.parent}:{os.environ['PATH']}"
        told = subprocess.run(
            ["scontrol", *words], env={"PATH": path}, executable=directory.stand_ins / "scontrol",
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.stdout.removesuffix("noted\n") == "".join(f"<{word}>" for word in words)
        assert told.returncode == code
        return told.stdout.endswith("noted\n"), directory.own_requeue.exists()

    return call


@pytest.mark.parametrize(
    "words",
    [["requeue", "12"], ["-Q", "REQUEUE", "11,12"], ["requeuehold", "JobId=12"], ["requeue", "10_3"], ["requ", "10"]],
)
def test_a_requeue_of_ones_own_is_noted_before_it_is_done(tmp_path: Path, words: list[str]) -> None:
    assert scontrol(tmp_path, ARRAY)(*words) == (True, True)


@pytest.mark.parametrize(
    "words",
    [["show", "job", "12"], ["requeue", "112"], ["requeue", "10_4"], ["update", "requeue=0", "jobid=12"], ["a *"]],
)
def test_what_is_another_command_or_job_is_only_passed_on(tmp_path: Path, words: list[str]) -> None:
    assert scontrol(tmp_path, ARRAY, code=3)(*words) == (False, False)


def test_a_requeue_that_slurm_refuses_is_none(tmp_path: Path) -> None:
    assert scontrol(tmp_path, code=1)("requeue", "12") == (True, False)


def test_without_a_scontrol_it_says_so(tmp_path: Path) -> None:
    scontrol(tmp_path)
    stand_in = tmp_path / "a store/slurm/c-12/bin/scontrol"
    told = subprocess.run([stand_in, "requeue", "12"], env={"PATH": "/nonesuch"}, capture_output=True, check=False)
    assert (told.returncode, b"there is no program scontrol" in told.stderr) == (127, True)


@pytest.mark.parametrize("heard", ["nothing", "sentinel", "signal"])
@pytest.mark.parametrize("code", [0, 3])
def test_one_that_requeues_itself_ends_in_its_own_way(rig: Rig, heard: str, code: int) -> None:
    rig.supervise(Options(every=0.0) if heard == "sentinel" else Options())
    with rig.directory.store.writer("tree", {RUN_TAG: "0"}) as writer:
        writer.publish(b"", "")
    rig.app.catches = {signal.SIGTERM}
    rig.directory.own_requeue.touch()
    rig.say(restarts=1, state="COMPLETING")
    if heard == "sentinel":
        rig.sentinel.news = ["ended", "has_started"]
    elif heard == "signal":
        rig.warn()
    kept: Any = rig.app.poll

    def poll() -> int | None:
        if rig.app.looks > 5:
            rig.app.code = code
        found: int | None = kept()
        return found

    rig.monkeypatch.setattr(rig.app, "poll", poll)
    assert rig.watch() == code
    assert rig.app.heard == ([signal.SIGTERM] if heard == "signal" else [])
    assert (rig.saves, rig.requeued, rig.directory.finished) == ([], [], None)
    assert rig.directory.begin(1, "n2", 2.0) == [], "the next run begins anew"


def test_what_requeued_nothing_is_saved_as_ever(rig: Rig) -> None:
    rig.directory.own_requeue.touch()
    rig.preempt()
    rig.warn()
    assert rig.watch() == 0
    assert (rig.saves, rig.requeued) == (["kill"], ["12"])

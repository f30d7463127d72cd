"""What runs under Torpor: which words and snapshots belong to a job."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import torpor
from torpor.errors import NotFound
from torpor.objects.process import jobs
from torpor.objects.process.jobs import RunningJob
from torpor.store import SnapshotInfo

JOB = RunningJob(4711, 12, "python3 train.py", 0, 10**18, "run", "", "/store", True, None)
SAVED = SnapshotInfo(
    "20260101-000000000-abcdef",
    "/store",
    created_ns=10**18 + 1,
    host=os.uname().nodename,
    summary="python3 train.py (PID 12) and 3 more",
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/usr/bin/python3 /opt/bin/torpor run --every 10m -- python run", ["run", "--every", "10m"]),
        ("/usr/bin/python3 -I -Xtorpor-ignored=13 /opt/bin/torpor-cli run --every 10m x", ["run", "--every", "10m"]),
        ("torpor -v run ./torpor restore", ["run"]),
        ("torpor run --every 10m --json ./train.py --store data", ["run", "--every", "10m", "--json"]),
        ("torpor run --store=/a --every run ls --every 1s", ["run", "--store=/a", "--every", "run"]),
        ("torpor run --every", ["run", "--every"]),
        ("torpor restore latest", ["restore", "latest"]),
        ("torpor ls", []),
        ("vi torpor-notes run", []),
        ("", []),
    ],
)
def test_commands_of_torpors_own(line: str, words: list[str]) -> None:
    assert jobs._command(line.encode().split(b" ")) == words


def test_values_of_options() -> None:
    words = ["run", "--every", "10m", "--store=/a b", "--keep-last"]
    values = {name: jobs._value(words, f"--{name}") for name in ("every", "store", "keep-last", "files")}
    assert jobs._value([], "--every") == ""
    assert values == {"every": "10m", "store": "/a b", "keep-last": "", "files": ""}


@pytest.mark.parametrize(
    ("other", "mine"),
    [
        ({}, True),
        ({"summary": "python3 train.py (PID 12)"}, True),
        ({"summary": "python3 train.py (PID 4711)"}, False),
        ({"summary": "results"}, False),
        ({"host": "elsewhere"}, False),
        ({"created_ns": 10**18 - 2 * 10**9}, False),
    ],
)
def test_whose_a_snapshot_is(other: dict[str, str | int], mine: bool) -> None:
    assert JOB.is_of(replace(SAVED, **other)) == mine  # type: ignore[arg-type]


def test_a_kernel(tmp_path: Path) -> None:
    """Below an init of its own, which its server has started."""
    environment = {"JPY_PARENT_PID": "1", "TORPOR_STORE": str(tmp_path), "PATH": os.environ["PATH"]}
    command = torpor.below_init(["sh", "-c", "echo $$; read _"], environment)
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as init:
        assert init.stdout
        pid = int(init.stdout.readline())
        try:
            (job,) = (job for job in jobs.running() if job.pid == pid)
        finally:
            os.kill(pid, signal.SIGKILL)
    assert (job.how, job.store, job.uid, job.every) == ("kernel", str(tmp_path), os.geteuid(), None)


def test_a_store_that_cannot_be_read(tmp_path: os.PathLike[str]) -> None:
    named = [replace(JOB, store=store) for store in ("", "/proc/self/status", os.fspath(tmp_path))]
    assert list(jobs.saves(named)) == [None, None, []]
    assert list(jobs.saves([replace(JOB, store=os.fspath(tmp_path), store_is_sure=False)])) == [None]


def test_a_job_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given = replace(JOB, pid=1, own_pid=1, given_name="tides")
    saved = replace(JOB, pid=2, own_pid=2)
    plain = replace(JOB, pid=3, own_pid=3, name="solver")
    kernel = replace(JOB, pid=4, own_pid=4, name="ipykernel", how="kernel")
    monkeypatch.setattr(jobs, "running", lambda: [given, saved, plain, kernel])
    titled = [replace(SAVED, tags={"name": "train"})]
    own = [titled, [replace(SAVED, tags={"name": "sun"}), replace(SAVED, tags={"name": "moon"})], None, titled]
    monkeypatch.setattr(jobs, "saves", lambda _: iter(own))
    assert [jobs.find(name) for name in ("tides", "moon", "solver")] == [given, saved, plain]
    for name in ("python3 train.py", "train.py"):
        with pytest.raises(NotFound, match=r"2 jobs: 1 \(python3 train.py\), 2 \("):
            jobs.find(name)
    for name in ("sun", "train", ""):  # the older name of its snapshots, a kernel's title, and a part of a word
        with pytest.raises(NotFound, match="`torpor ps` lists them"):
            jobs.find(name)

"""`torpor checkpoint`: whom it does not freeze, and what it says of the costs."""

from __future__ import annotations

import json
import os
from typing import Any

import click
import pytest

import torpor
from tests.unit.cli.conftest import Torpor
from tests.unit.cli.test_cli import PID, raising
from torpor.cli import checkpoint
from torpor.errors import StoreError
from torpor.objects.process import jobs
from torpor.objects.process.jobs import RunningJob
from torpor.store import SnapshotInfo


def test_it_does_not_freeze_itself(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torpor, "checkpoint", raising(AssertionError("it was frozen")), raising=False)
    code, out, err = run("checkpoint", str(os.getpid()))
    assert (code, out) == (10, "")
    assert "this command runs below it, and would be frozen with it" in err


def test_costs_are_printed_if_asked_for(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(pid: int, *, stats: torpor.Stats, **_: Any) -> SnapshotInfo:
        stats.pause_ns, stats.proof_ns, stats.total_ns = 12_400_000, 3_000_000, 2 * 10**9
        stats.look_ns, stats.write_ns, stats.publish_ns = 5_000_000, 10**9, 20_000_000
        return SnapshotInfo("id", "/store")

    monkeypatch.setattr(torpor, "checkpoint", saved, raising=False)
    stages = (
        "to look took 5 ms; to write took 1000 ms; to publish took 20 ms; to prove that it can be woken here took 3 ms"
    )
    words = f"torpor: note: it stood still for 12 ms; {stages}; 2000 ms in all\n"
    assert run("checkpoint", PID, "--stats") == (0, "id\n", words)
    assert json.loads(run("checkpoint", PID, "--stats", "--json")[1])["stats"]["pause_ns"] == 12_400_000
    assert "stats" not in json.loads(run("checkpoint", PID, "--json")[1])


def test_what_was_not_done_costs_nothing() -> None:
    assert checkpoint._cost(torpor.Stats(total_ns=10**6)) == "1 ms in all"
    assert checkpoint._span(1_500_000_000) == "1.5 s"


def test_completion_offers_jobs_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(incomplete: str) -> list[str]:
        parameter = checkpoint.command.params[0]
        return [
            item.value for item in checkpoint._complete_jobs(click.Context(checkpoint.command), parameter, incomplete)
        ]

    found = [RunningJob(pid, 1, "job", 0, 1, "run", "", "", False, None) for pid in (12, 123)]
    found.append(RunningJob(45, 1, "job", 0, 1, "run", "", "", False, None, "tides"))
    monkeypatch.setattr(jobs, "running", lambda: found)
    assert (offered(""), offered("12"), offered("x")) == (["12", "123", "45", "tides"], ["12", "123"], [])
    assert offered("t") == ["tides"]
    monkeypatch.setattr(jobs, "running", raising(StoreError("nothing can be read")))
    assert offered("") == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("tides",), "tides"),
        (("train.py",), "tides"),
        (("tides", "--name", "moon"), "moon"),
        (("tides", "--tag", "name=moon"), "moon"),
        (("45",), None),
        (("45", "--name", "moon"), "moon"),
    ],
)
def test_a_job_by_its_name(
    run: Torpor, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], name: str | None
) -> None:
    found = RunningJob(45, 1, "python3 train.py", 0, 1, "run", "", "", False, None, "tides")
    monkeypatch.setattr(jobs, "running", lambda: [found])
    seen: list[Any] = []

    def saved(pid: int, *, tags: dict[str, str], **_: Any) -> SnapshotInfo:
        seen.extend([pid, tags.get("name")])
        return SnapshotInfo("id", "/store")

    monkeypatch.setattr(torpor, "checkpoint", saved, raising=False)
    assert run("checkpoint", *words)[0] == 0
    assert seen == [45, name]


@pytest.mark.parametrize("target", ["0", "", "00", "12345678901"])
def test_neither_a_pid_nor_a_name(run: Torpor, target: str) -> None:
    code, _, err = run("checkpoint", target)
    assert (code, "neither the PID of a process nor the name of a job" in err) == (2, True)


@pytest.mark.parametrize("name", ["", "latest", "12", "a\nb", "x" * 1025])
def test_a_name_must_be_one(run: Torpor, name: str) -> None:
    assert run("checkpoint", PID, "--name", name)[0] == 2
    assert run("run", "--name", name, "true")[0] == 2

"""What commands print with --json is what docs/output.schema.json says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import jsonschema
import pytest

import torpor
from tests.unit.cli.test_cli_store import a_tree
from tests.unit.cli.test_doctor import ABLE
from torpor import cli
from torpor import probe as probing
from torpor.objects.process import jobs
from torpor.objects.process.jobs import RunningJob
from torpor.remote import pid_allocation
from torpor.store import SnapshotInfo, Store
from torpor_slurm import clean, job_directory, report, submit

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs/output.schema.json").read_text())
ALIKE = {"run": "it prints nothing of its own", "slurm": "a group"}
PID = "2000000000"
Torpor = Callable[..., Any]


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Torpor:
    """Run a command with --json, and hold what it prints against the schema."""
    monkeypatch.setenv("TORPOR_STORE", store.path)

    def call(*words: str) -> Any:
        called = 2 if words[0] == "slurm" else 1
        with pytest.raises(SystemExit) as ended:
            cli.main([*words[:called], "--json", *words[called:]])
        printed = json.loads(capsys.readouterr().out)
        name = "-".join(words[:called])
        jsonschema.validate(printed, SCHEMA | {"$ref": f"#/$defs/{'error' if 'error' in printed else name}"})
        assert "error" not in printed or printed["error"]["exit_code"] == ended.value.code
        return printed

    return call


def save(store: Store, kind: str = "tree") -> SnapshotInfo:
    with store.writer(kind, {"owner": "ann"}) as writer:
        writer.add_blocks(memoryview(b"x" * 4096), [4096])
        return writer.publish(a_tree().SerializeToString(), "a test", notices=["a connection is lost"])


def test_every_command_has_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    slurm = cli.cli.get_command(click.Context(cli.cli), "slurm")
    assert isinstance(slurm, click.Group)
    names = {*cli.COMMANDS, *(f"slurm-{name}" for name in slurm.commands)} - ALIKE.keys()
    assert SCHEMA["$defs"].keys() == names | {"snapshot", "error"}


def test_what_looks_into_a_store(run: Torpor, store: Store, tmp_path: Path) -> None:
    before, after, results = save(store), save(store), save(store, "dask")
    file = str(tmp_path / "file")
    assert len(run("ls")) == 3
    for name in (after.id, results.id):
        run("show", name)
    run("diff", before.id, after.id)
    run("verify", "--all")
    run("export", before.id, file)
    assert len(run("rm", before.id)["snapshots"]) == 1
    run("import", file)
    assert run("init") == {"store": store.path}
    assert len(run("prune", "--keep-last", "1")["snapshots"]) == 1
    next(Path(store.path).rglob("*.pack")).write_bytes(b"")
    assert not run("verify", "--all")["sound"]
    assert "error" in run("show", "nothing")
    assert "error" in run("ls", "--what")


def test_what_asks_the_host(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    run("config")
    job = RunningJob(1, 1, "job", 0, 1, "slurm", "12", "", False, 60.0)
    monkeypatch.setattr(jobs, "running", lambda: [job, job])
    monkeypatch.setattr(jobs, "saves", lambda _: [None, [SnapshotInfo("id", "/store", created_ns=5)]])
    assert [one["next_ns"] for one in run("ps")] == [None, 5 + 60 * 10**9]
    monkeypatch.setattr(probing, "probe", lambda: ABLE)
    monkeypatch.setattr(pid_allocation, "whole_round", lambda: None)
    run("doctor")


def test_what_saves_and_wakes(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torpor, "checkpoint", lambda *_, **__: SnapshotInfo("id", "/store"), raising=False)
    monkeypatch.setattr(torpor, "restore", lambda *_, **__: SimpleNamespace(pid=1, warnings=("w",)), raising=False)
    run("checkpoint", PID)
    run("checkpoint", PID, "--stats")
    run("restore", "latest", "--detach")
    monkeypatch.setattr("torpor.restorer.restore.explain", lambda *_, **__: "a\nb")
    assert run("restore", "latest", "--explain") == {"calls": ["a", "b"]}


def test_slurm(run: Torpor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some = report.Row("12", "n", "RUNNING", "running", "", "n1", 0, ("id",), 1.5, 7, 0.1, 2.5, 60, "/d")
    none = report.Row("13", "", "", "", "", "", 0, (), None, 0, None, None, None, "/d")
    monkeypatch.setattr(report, "status", lambda *_: [some, none])
    monkeypatch.setattr(job_directory, "requeue", lambda *_: SimpleNamespace(job="12"))
    monkeypatch.setattr(clean, "clean", lambda *_: [tmp_path])
    monkeypatch.setattr(submit, "submit", lambda *_: ("Submitted batch job 12\n", 0))
    assert len(run("slurm", "status")) == 2
    run("slurm", "requeue", "12")
    run("slurm", "clean")
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n")
    assert run("sbatch", str(script)) == {"job": "12"}
    assert "error" in run("sbatch")

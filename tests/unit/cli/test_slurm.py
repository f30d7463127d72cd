"""`torpor slurm` and `torpor sbatch`: what they print, and that their options are those of the supervisor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from tests.unit.cli.conftest import Torpor
from torpor.cli import run as running
from torpor.cli import sbatch, slurm_options
from torpor_slurm import clean, job_directory, report, submit
from torpor_slurm.run_options import Options


def test_every_option_for_a_job_is_one_of_the_supervisor() -> None:
    @click.command()
    @slurm_options.slurm_options
    def command() -> None:
        """Nothing."""

    named = {one.name for one in command.params}
    assert named == {field.name for field in dataclasses.fields(Options)} - {"every", "with_files", "portable"}
    for other in (running.command, sbatch.command):
        mine = {one.name: one.to_info_dict() for one in other.params}
        assert {one.name: one.to_info_dict() for one in command.params if one.name} == {
            name: mine[name] for name in named if name
        }
    defaults = command.make_context("command", []).params
    assert defaults == {name: getattr(Options(), name) for name in defaults}


def test_no_jobs_and_nothing_to_remove_are_answers(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "status", lambda *_: [])
    monkeypatch.setattr(clean, "clean", lambda *_: [])
    assert run("slurm", "status") == (0, "no jobs\n", "")
    assert run("slurm", "clean") == (0, "nothing to remove\n", "")


def test_what_was_removed_and_requeued_is_said(run: Torpor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def remove(store: str, older: float) -> list[Path]:
        seen.append(older)
        return [tmp_path / "12"]

    def again(store: str, job: str, files: str) -> SimpleNamespace:
        seen.append(files)
        return SimpleNamespace(job=job)

    monkeypatch.setattr(clean, "clean", remove)
    monkeypatch.setattr(job_directory, "requeue", again)
    assert run("slurm", "clean") == (0, f"removed {tmp_path / '12'}\n", "")
    assert run("slurm", "clean", "--older", "1h")[0] == 0
    assert run("slurm", "requeue", "12", "--files", "as-they-are") == (0, "job 12 is in the queue again\n", "")
    assert seen == [7 * 86400, 3600, "as-they-are"]


def test_a_script_that_is_not_named_is_a_usage_error(run: Torpor) -> None:
    code, out, _ = run("sbatch", "-n1")
    assert (code, out) == (2, "")


def test_the_exit_code_and_the_words_are_sbatchs(run: Torpor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n")
    seen: list[Any] = []

    def submitted(submission: submit.Submission, words: list[str], store: str) -> tuple[str, int]:
        seen.extend(words)
        return "Submitted batch job 12\n", 3

    monkeypatch.setattr(submit, "submit", submitted)
    assert run("sbatch", "--every", "90", "--on-refused", "anew", str(script)) == (3, "Submitted batch job 12\n", "")
    assert seen[1] == "run"
    assert {"--every=90", "--on-refused=anew"} <= set(seen)

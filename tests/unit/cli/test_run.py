"""`torpor run`: which words are the job's own, and what is said of its saves."""

from __future__ import annotations

import subprocess
from typing import Any

import click
import pytest

import torpor
from tests.unit.cli.conftest import Torpor
from tests.users import BIN
from torpor.cli import run as command
from torpor.objects.process import jobs
from torpor.store import SnapshotInfo


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of any Slurm job."""
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_torpor_ps_knows_which_options_take_a_word() -> None:
    """It reads the command lines of others: a word too few, and an option of the job counts as Torpor's."""
    options = [one for one in command.command.params if isinstance(one, click.Option) and not one.is_flag]
    options = [one for one in options if one.name != "portable"]  # --portable[=LEVEL] takes no word of its own
    assert {name for one in options for name in one.opts} == jobs.WITH_VALUE


def test_options_behind_the_command_are_the_jobs(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def ran(cmd: tuple[str, ...], **options: Any) -> int:
        seen.extend([cmd, options["store"], options["every"], options["keep"]])
        return 5

    monkeypatch.setattr(torpor, "run", ran, raising=False)
    assert run("run", "--every", "1m", "train.py", "--store", "data", "--json") == (5, "", "")
    assert seen == [("train.py", "--store", "data", "--json"), None, 60.0, 5]


@pytest.mark.parametrize(
    ("words", "portable", "cmd"),
    [
        (["--portable", "train.py"], "x86-64-v3", ("train.py",)),
        (["--portable", "--", "train.py"], "x86-64-v3", ("train.py",)),
        (["--every", "1m", "--portable", "train.py", "--portable"], "x86-64-v3", ("train.py", "--portable")),
        (["--portable=x86-64-v2", "train.py"], "x86-64-v2", ("train.py",)),
        (["--", "train.py", "--portable"], None, ("train.py", "--portable")),
        (["train.py", "--portable", "on"], None, ("train.py", "--portable", "on")),
    ],
)
def test_a_level_is_given_behind_an_equals_sign(
    run: Torpor, monkeypatch: pytest.MonkeyPatch, words: list[str], portable: str | None, cmd: tuple[str, ...]
) -> None:
    seen: list[Any] = []

    def ran(cmd: tuple[str, ...], **options: Any) -> int:
        seen.append((options["portable"], cmd))
        return 0

    monkeypatch.setattr(torpor, "run", ran, raising=False)
    assert run("run", *words) == (0, "", "")
    assert seen == [(portable, cmd)]


def test_a_level_that_does_not_exist_is_a_wrong_command_line(run: Torpor) -> None:
    code, _, err = run("run", "--portable=x86-64-v9", "true")
    assert (code, "x86-64-v9" in err) == (2, True)


def test_a_notice_is_printed_once_and_the_limit_when_it_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    saved = command._teller(2)
    for notices in (("a", "b"), ("b", "c"), ("a",), ()):
        saved(SnapshotInfo("id", "/store", notices=notices))
    assert capsys.readouterr().err.splitlines() == [
        "torpor: note: saved, but a",
        "torpor: note: saved, but b",
        "torpor: note: saved, but c",
        "torpor: note: of the snapshots of this run only the newest 2 stay (--keep-last)",
    ]


def test_there_must_be_a_command(run: Torpor) -> None:
    code, _, err = run("run", "--every", "1m")
    assert (code, "Missing argument 'CMD...'" in err) == (2, True)


def test_its_snapshots_get_its_name(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def ran(cmd: tuple[str, ...], **options: Any) -> int:
        seen.append(options["tags"])
        return 0

    monkeypatch.setattr(torpor, "run", ran, raising=False)
    assert run("run", "--every", "1m", "--name", "tides", "true") == (0, "", "")
    assert run("run", "true") == (0, "", "")
    assert seen == [{"name": "tides"}, {}]


def test_a_command_that_cannot_be_started_here_is_no_fault_of_torpors() -> None:
    words = ["prlimit", "--nofile=8", f"{BIN}/torpor", "run", "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "raise the limit (ulimit -n)" in done.stderr) == (21, True), done.stderr


def test_a_job_has_the_place_of_its_launcher() -> None:
    """It is scheduled as the launcher was, and a variable that named the launcher names it."""
    told = 'test "$LISTEN_PID $WATCHDOG_PID $OTHER_PID" = "$$ $$ $SH"; echo $? $LISTEN_FDS; chrt -p $$; env'
    named = "LISTEN_PID=$$ WATCHDOG_PID=$$ OTHER_PID=$$ SH=$$ LISTEN_FDS=1 LISTEN_PIDFDID=7"
    words = f'export {named}; exec chrt -R -b 0 "$@"'
    job = [f"{BIN}/torpor", "run", "--", "sh", "-c", told]
    done = subprocess.run(["sh", "-c", words, "sh", *job], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("0 1\n") and "SCHED_BATCH|SCHED_RESET_ON_FORK" in done.stdout
    assert "LISTEN_PIDFDID" not in done.stdout

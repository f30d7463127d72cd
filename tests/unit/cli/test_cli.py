"""The command line: what it prints for people, for programs, and how it exits."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import click
import pytest

import torpor
from tests.unit.cli.conftest import Torpor
from tests.users import BIN
from torpor import cli, errors
from torpor.cli import common
from torpor.errors import Reason
from torpor.store import SnapshotInfo

PID = "2000000000"
"""Of no process: what would save it is replaced."""


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def test_help_lists_every_command(run: Torpor) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert [word for word in cli.COMMANDS if f"\n  {word} " not in out] == []


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_helps(run: Torpor, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: torpor {command}")


def loaded_by(program: str) -> set[str]:
    """The modules that a program has loaded when it ends."""
    code = f"import sys\ntry:\n    {program}\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([BIN / "python", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def command(*argv: str) -> str:
    """A program that is this command."""
    return f"sys.argv = {['torpor', *argv]}; from torpor.cli import main; main()"


def test_help_and_a_run_without_saves_load_nothing_that_they_do_not_need() -> None:
    # The engine, and what is slow to load.
    slow = {
        "torpor.dump.checkpoint",
        "torpor.restorer.restore",
        "torpor.store",
        "rich",
        "google.protobuf",
        "blake3",
        "asyncio",
    }
    of_help, of_run = loaded_by(command("--help")), loaded_by(command("run", "true"))
    assert "click" in of_help
    assert not (slow | {"cffi"}).intersection(of_help)
    assert "torpor.restorer.run" in of_run
    assert not slow.intersection(of_run)


def test_a_save_that_ends_nothing_loads_no_plan_of_a_restore() -> None:
    loaded = loaded_by("import torpor; torpor.checkpoint")
    assert "torpor.dump.checkpoint" in loaded
    assert not {"torpor.restorer.plan", "tempfile", "difflib", "secrets"}.intersection(loaded)


def test_version(run: Torpor) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"torpor [0-9.]+ \(editable\)\n", out)


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["checkpoint"], ["checkpoint", "0"], ["checkpoint", "1", "--tag", "x"], ["verify"]]
)
def test_a_wrong_command_line(run: Torpor, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: torpor")


def test_an_error_is_one_line_with_its_advice(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.NotFound("there is no process 4711", advice="`ps` lists them")
    monkeypatch.setattr(torpor, "checkpoint", raising(error), raising=False)
    assert run("checkpoint", "4711") == (11, "", "torpor: there is no process 4711; `ps` lists them\n")


def test_details_only_when_asked_for(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.StoreError("the store is full", details="ENOSPC at 4096")
    monkeypatch.setattr(torpor, "checkpoint", raising(error), raising=False)
    assert "ENOSPC" not in run("checkpoint", PID)[2]
    for argv in (["-v", "checkpoint", PID], ["checkpoint", "-v", PID]):
        code, _, err = run(*argv)
        assert code == 30
        assert "ENOSPC at 4096" in err
        assert "Traceback" in err
        assert "/click/" not in err  # how the command line was parsed explains nothing


def test_several_reasons_are_a_line_each(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [Reason("fd 7 (io_uring)", "it cannot be kept", "close it"), Reason("fd 9", "it is unknown")]
    monkeypatch.setattr(torpor, "checkpoint", raising(errors.Refused("job 12", reasons)), raising=False)
    code, out, err = run("checkpoint", PID)
    assert (code, out) == (10, "")
    assert err.splitlines() == [
        "torpor: job 12:",
        "  fd 7 (io_uring): it cannot be kept; close it",
        "  fd 9: it is unknown",
    ]
    told = json.loads(run("checkpoint", PID, "--json")[1])["error"]
    assert told["kind"] == "Refused"
    assert told["exit_code"] == 10
    assert told["reasons"][0] == {
        "subject": "fd 7 (io_uring)",
        "why": "it cannot be kept",
        "advice": "close it",
    }


def test_a_fault_asks_for_a_report(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torpor, "checkpoint", raising(ZeroDivisionError("division by zero")), raising=False)
    code, _, err = run("checkpoint", PID)
    assert code == 70
    assert err == f"torpor: ZeroDivisionError: division by zero; {cli.REPORT}\n"
    assert "Traceback" in run("-v", "checkpoint", PID)[2]


def test_an_interrupt(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torpor, "checkpoint", raising(KeyboardInterrupt()), raising=False)
    # The line that ^C was shown on ends.
    assert run("checkpoint", PID) == (130, "", f"\ntorpor: interrupted: process {PID} was not saved, and runs on\n")
    monkeypatch.setattr(torpor, "restore", raising(KeyboardInterrupt()), raising=False)
    assert run("restore", "x") == (130, "", "\ntorpor: interrupted: nothing was woken; the snapshot stays\n")


def test_an_interrupt_that_comes_too_late(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    info = SnapshotInfo("20260101-000000000-abcdef", "/store")
    monkeypatch.setattr(torpor, "checkpoint", raising(KeyboardInterrupt(info)), raising=False)
    assert run("checkpoint", PID) == (0, f"{info.id}\n", "")


def test_a_word_that_is_no_command(run: Torpor) -> None:
    assert "Did you mean 'restore'?" in run("restor", "latest")[2]
    assert run("help", "ls")[1] == run("ls", "--help")[1]
    assert run("help")[1] == run("--help")[1]


def test_an_option_before_the_command(run: Torpor) -> None:
    code, _, err = run("--store", "/data", "ls")
    assert (code, "No such option: --store. Options of a command go behind it" in err) == (2, True)


@pytest.mark.parametrize(
    "words", [["ls", "--json", "--what"], ["ls", "--what", "--json"], ["rm", "--json"], ["checkpoint", "0", "--json"]]
)
def test_a_wrong_command_line_in_json(run: Torpor, words: list[str]) -> None:
    code, out, err = run(*words)
    told = json.loads(out)["error"]
    assert (code, err, told["kind"], told["exit_code"]) == (2, "", "UsageError", 2)
    assert told["advice"] == f"see `torpor {words[0]} --help`"


def test_what_is_to_be_kept_must_be_saved(run: Torpor) -> None:
    code, _, err = run("run", "--keep-last", "3", "true")
    assert (code, "--keep-last is for the snapshots of --every" in err) == (2, True)


def test_json_that_another_program_is_to_print(run: Torpor) -> None:
    code, out, err = run("run", "--every", "x", "--", "jq", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("Usage: torpor run")


def test_checkpoint_prints_the_id_alone(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def checkpoint(pid: int, **options: Any) -> SnapshotInfo:
        seen.update(options, pid=pid)
        return SnapshotInfo("20260101-000000000-abcdef", "/store", notices=("a connection is lost",))

    monkeypatch.setattr(torpor, "checkpoint", checkpoint, raising=False)
    assert run("checkpoint", PID, "--then", "kill", "--tag", "a=b", "--tag", "c=d=e") == (
        0,
        "20260101-000000000-abcdef\n",
        "torpor: note: a connection is lost\n",
    )
    assert seen == {
        "pid": int(PID),
        "store": None,
        "then": "kill",
        "tags": {"a": "b", "c": "d=e"},
        "progress": None,
        "outside": "refuse",
        "tcp": "reset",
        "bundle_files": False,
        "limit": None,
        "with_files": (),
        "stats": torpor.Stats(),
    }
    code, out, err = run("checkpoint", PID, "--json")
    told = json.loads(out)
    assert (code, err, told["id"], told["notices"]) == (
        0,
        "",
        "20260101-000000000-abcdef",
        ["a connection is lost"],
    )


def test_the_rate_of_a_save(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    def checkpoint(pid: int, *, limit: int | None, **_: Any) -> SnapshotInfo:
        limits.append(limit)
        return SnapshotInfo("20260101-000000000-abcdef", "/store")

    monkeypatch.setattr(torpor, "checkpoint", checkpoint, raising=False)
    for said in ("200M", "0"):
        assert run("checkpoint", PID, "--limit", said)[0] == 0
    assert limits == [200 << 20, 0]
    code, _, err = run("checkpoint", PID, "--limit", "fast")
    assert (code, "it must be a size such as 4M" in err) == (2, True)


def test_a_terminal_is_told_what_was_saved(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoint(pid: int, *, stats: torpor.Stats, **_: Any) -> SnapshotInfo:
        stats.pause_ns = 12_400_000
        return SnapshotInfo("20260101-000000000-abcdef", "/store", summary="job (PID 7)", size=3 << 30, written=5 << 20)

    monkeypatch.setattr(torpor, "checkpoint", checkpoint, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, out, err = run("checkpoint", PID)
    assert (code, out) == (0, "20260101-000000000-abcdef\n")
    assert err == "saved job (PID 7): 3.0 GiB, of which 5.0 MiB are new; it stood still for 12 ms\n"


def test_a_reader_that_goes_away_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [BIN / "torpor", "doctor", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_duration_that_is_none_is_a_usage_error() -> None:
    assert common.DurationType().convert("1h30m", None, None) == 5400
    assert common.DurationType().convert(90, None, None) == 90.0
    with pytest.raises(click.BadParameter, match=r"'1\.5h' is not a time span"):
        common.DurationType().convert("1.5h", None, None)


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (0, "just now"),
        (-5, "just now"),
        (59, "59 s ago"),
        (61, "1 min ago"),
        (7300, "2 h ago"),
        (200000, "2 d ago"),
    ],
)
def test_ages(age: int, words: str) -> None:
    assert common.human_age(10**18, 10**18 + age * 10**9) == words


def test_names_cannot_drive_a_terminal() -> None:
    assert common.printable(b"a\x1b[2Jb\xff\n") == r"a\x1b[2Jb\xff\n"
    assert common.printable("Grüße") == "Grüße"


def test_no_bar_where_nobody_looks() -> None:
    with common.progress_bar("saving") as progress:
        assert progress is None


def test_a_bar_for_what_takes_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with common.progress_bar("saving") as progress:
        assert progress
        progress(1, 100)
    assert capsys.readouterr().err == ""  # it was over at once
    monkeypatch.setattr(common, "PATIENCE", 0)
    with common.progress_bar("saving") as progress:
        assert progress
        progress(1, 100)
        progress(100, 100)
    assert "saving" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("done", "seconds", "words"),
    [
        (0, 9.0, "of 8.0 GiB"),
        (2 << 30, 2.0, "2.0 GiB of 8.0 GiB, 1.0 GiB/s, 0:06 left"),
        (8 << 30, 4.0, "8.0 GiB of 8.0 GiB, 2.0 GiB/s, 0:00 left"),
    ],
)
def test_the_pace_is_that_since_the_beginning(done: int, seconds: float, words: str) -> None:
    assert common._pace(done, 8 << 30, seconds) == words


def test_no_name_is_a_command_to_the_terminal(run: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process, of a file, however it is told: as an error with one reason or many, in detail, or as a note."""
    wild = "process 7 (\x1b]0;mine\x07\x9b31m\udcff)"
    shown = r"process 7 (\x1b]0;mine\x07\x9b31m\udcff)"

    def noted(*_: object, **__: object) -> torpor.Snapshot:
        return torpor.Snapshot("20260101-000000000-abcdef", "/store", notices=(wild,))

    for many in (1, 2):
        refused = errors.Refused("nothing", [Reason(wild, "one")] * many)
        monkeypatch.setattr(torpor, "checkpoint", raising(refused), raising=False)
        _, _, err = run("checkpoint", PID, "-v")
        assert shown in err.splitlines()[-1] and "\x1b" not in err
    monkeypatch.setattr(torpor, "checkpoint", noted, raising=False)
    assert run("checkpoint", PID)[2] == f"torpor: note: {shown}\n"

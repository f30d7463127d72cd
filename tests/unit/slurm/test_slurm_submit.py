"""`torpor sbatch`: what it makes of a command line of sbatch and of a script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from torpor.cli.sbatch import command
from torpor.errors import NotFound, Refused
from torpor_slurm import submit
from torpor_slurm.controller import SlurmError
from torpor_slurm.shell import shebang


@pytest.fixture
def job_script(tmp_path: Path) -> Path:
    path = tmp_path / "job.sh"
    path.write_text("#!/bin/bash\n#SBATCH -c 4\n# a word\n\n#SBATCH --time=10\necho hello\n#SBATCH --nodes=9\n")
    return path


def test_the_script_is_found_among_the_arguments(job_script: Path) -> None:
    found = submit.parse(["-vHp", "low", "--time", "5", "--exclusive", "--mem=1G", str(job_script), "-x", "1"])
    assert found.options == ("-vHp", "low", "--time", "5", "--exclusive", "--mem=1G")
    assert (found.name, found.arguments) == ("job.sh", ("-x", "1"))
    assert found.values["time"] == "5", "the command line counts more than the script"
    assert found.values["c"] == "4"
    assert "nodes" not in found.values, "sbatch reads no further than the first command"


def test_a_wrapped_command_is_a_script() -> None:
    found = submit.parse(["-p", "low", "--wrap", "echo hello", "-n1"])
    assert (found.options, found.script) == (("-p", "low", "-n1"), b"#!/bin/sh\necho hello\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-N2"], "2 nodes"),
        (["--nodes", "1-4"], "4 nodes"),
        (["--gpus=1"], "GPUs"),
        (["-G", "2"], "GPUs"),
        (["--gres=shard:1,gpu:2"], "GPUs"),
        (["--no-requeue"], "--no-requeue"),
        (["--open-mode=truncate"], "--open-mode"),
    ],
)
def test_what_cannot_be_kept_is_not_submitted(job_script: Path, options: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        submit.submit(submit.parse([*options, str(job_script)]), ["torpor", "run"], "/nowhere")


@pytest.mark.parametrize("line", ["#SBATCH hetjob", "#SBATCH packjob"])
def test_a_script_of_several_parts_is_not_submitted(job_script: Path, line: str) -> None:
    job_script.write_text(f"#!/bin/sh\n#SBATCH -n1 -J hetjob\n{line}\n#SBATCH -n1\ntrue\n")
    assert [one.subject for one in submit.refuse(submit.parse([str(job_script)]))] == [
        f"a heterogeneous job ({line[8:]})"
    ]


def test_a_job_may_be_named_so(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH -J hetjob\ntrue\n")
    assert submit.refuse(submit.parse([str(job_script)])) == []


def test_what_a_workflow_manager_writes_into_its_scripts_is_overridden(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH --no-requeue\ntrue\n")
    assert submit.refuse(submit.parse([str(job_script)])) == []


def test_options_of_sbatch_need_no_dashes_before_them(
    job_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nfor word; do [ -f "$word" ] && word="script ${word##*/}"; echo "<$word>"; done\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    own = ["--store", str(tmp_path / "store"), "--every=5m"]
    told = []
    for dashes in ([], ["--"]):
        words = [*own, *dashes, "-Hp", "low", "--time=5", "-n", "1", str(job_script), "--every", "x"]
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, result.output
        told.append(result.stdout.split("\n"))
    assert told[0] == told[1]
    assert told[0][3:] == ["<-Hp>", "<low>", "<--time=5>", "<-n>", "<1>", "<script job.sh>", "<--every>", "<x>", ""]


def test_the_option_of_the_plugin_is_taken_out(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH --torpor=5m\n#SBATCH -c 4 --torpor --time='1 2'\ntrue --torpor\n")
    found = submit.parse(["--torpor", "--torp=90s", "--parsable", str(job_script), "--torpor"])
    assert (found.every, found.options, found.arguments) == ("90s", ("--parsable",), ("--torpor",))
    assert submit.parse([str(job_script)]).every == "5m"
    head = submit.wrapped(found, ["torpor", "run"]).partition(b"exec")[0]
    assert head == shebang().encode() + b"#SBATCH -c 4 '--time=1 2'\n"
    assert submit.parse(["--torpor=3h", "--wrap=true"]).every == "3h"


def test_a_line_that_cannot_be_read_is_named(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH --comment=it's\n")
    with pytest.raises(Refused, match="#SBATCH --comment=it's: No closing quotation"):
        submit.parse([str(job_script)])


def test_an_sbatch_that_cannot_be_started_is_told_in_words(
    job_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SlurmError, match="sbatch cannot be started: Exec format error"):
        submit.submit(submit.parse([str(job_script)]), ["torpor", "run"], str(tmp_path / "new/store"))
    (tmp_path / "bin/sbatch").unlink()
    with pytest.raises(NotFound, match="there is no sbatch here"):
        submit.submit(submit.parse([str(job_script)]), ["torpor", "run"], str(tmp_path / "new/store"))
    assert (tmp_path / "new/store").is_dir(), "a later run that finds none waits for one that is not mounted"


def test_there_must_be_one_script(tmp_path: Path) -> None:
    for arguments in ([], ["-p", "low"], ["--wrap=true", "job.sh"]):
        with pytest.raises(ValueError, match=r"batch script|only one of them"):
            submit.parse(arguments)
        assert CliRunner().invoke(command, arguments).exit_code == 2
    with pytest.raises(NotFound):
        submit.parse([str(tmp_path / "none.sh")])


def test_what_is_submitted_holds_the_script_as_it_is(job_script: Path, tmp_path: Path) -> None:
    found = submit.parse([str(job_script)])
    batch = tmp_path / "slurm_script"
    batch.write_bytes(submit.wrapped(found, ["echo", "a b"]))
    assert batch.read_bytes().splitlines()[1:3] == [b"#SBATCH -c 4", b"#SBATCH --time=10"]
    assert submit.embedded_script(str(batch)) == ("job.sh", job_script.read_bytes())
    ran = subprocess.run(["sh", batch, "x"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"a b --script {batch} -- x\n"
    with pytest.raises(NotFound):
        submit.embedded_script(str(job_script))


@given(st.lists(st.text(max_size=8), max_size=8))
def test_no_arguments_confuse_it(words: list[str]) -> None:
    try:
        found = submit.parse(["--wrap=true", *words])
    except (Refused, ValueError):
        return
    assert found.name == "wrap"


def test_options_are_handed_on() -> None:
    chosen = {"every": 60, "mpi": None, "with_files": ("*.db", "a b"), "on_timeout": "stop"}
    assert submit.as_options(chosen) == [
        "--every=60",
        "--with-files=*.db",
        "--with-files=a b",
        "--on-timeout=stop",
    ]

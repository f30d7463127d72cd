"""The beginning of the command: what is meant for a job's Python does not reach Torpor's, and reaches the job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import torpor
import torpor_slurm
from tests.users import BIN

BASE = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
"""A Python that does not find Torpor."""
OWN = list(dict.fromkeys(str(Path(package.__file__ or "").parents[1]) for package in (torpor, torpor_slurm)))
NEEDED = [path for path in sys.path if path.endswith("site-packages")]
"""Where Torpor's own packages are, and what they need."""
SHELL = "#!/bin/sh\n'''exec' '{}/a b/python' \"$0\" \"$@\"\n' '''"
"""How installers write the first line of a script if the path of Python is long, or has blanks."""


def test_variables_for_the_jobs_python_do_not_reach_torpors(tmp_path: Path) -> None:
    """Packages of another Python, as module systems set PYTHONPATH, and what changes how Python starts and ends."""
    packages = tmp_path / "packages"
    for name in ("_cffi_backend", "blake3", "click", "encodings", "google", "queue", "re", "site", "typing"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("raise SystemExit(f'{__name__} of another Python')")
    given = {
        "PATH": os.environ["PATH"], "PYTHONPATH": f"{packages}", "PYTHONINSPECT": "1", "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error", "TORPOR_STORE": f"{tmp_path}/store", "LC_ALL": "", "LANG": "C", "empty": "",
        "PYTHONHOME": "/nonexistent", "PYTHONVERBOSE": "1", "PYTHONPROFILEIMPORTTIME": "1",
    }  # fmt: skip
    words = [f"{BIN}/torpor", "run", "--every", "1h", "--", "env", "-0"]
    done = subprocess.run(words, cwd=packages, env=given, input="", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(word.split("=", 1) for word in done.stdout.split("\0") if word) == given


@pytest.mark.parametrize("names", ["", "PIPE", "XFSZ", "PIPE,XFSZ,INT"])
def test_what_any_program_has_ignored_the_job_ignores(names: str) -> None:
    """Also what Python itself ignores, and if the parent is no shell."""
    show = ["grep", "SigIgn", "/proc/self/status"]
    found = []
    for prefix in [], [f"{BIN}/torpor", "run", "--"]:
        ignoring = ["env", "--default-signal", *([f"--ignore-signal={names}"] if names else []), *prefix, *show]
        found.append(subprocess.check_output([sys.executable, "-c", "import os; os.execvp(*eval(input()))"],
                                             input=repr((ignoring[0], ignoring)), text=True))  # fmt: skip
    assert found[0] == found[1]


def test_the_command_keeps_its_name() -> None:
    script = "read -r _ _ _ command _ </proc/$PPID/stat; cat /proc/$command/comm"  # of the parent of torpor-init
    words = [f"{BIN}/torpor", "run", "--", "sh", "-c", script]
    for variables in ({}, {"PYTHONPATH": "/nonexistent"}):
        assert subprocess.check_output(words, env={**os.environ, **variables}, text=True) == "torpor\n"


def _install(folder: Path, first_line: str) -> Path:
    """The command, with this first line of torpor-cli."""
    folder.mkdir()
    shutil.copy(BIN / "torpor", folder)
    _, _, script = (BIN / "torpor-cli").read_text().partition("\n")
    (folder / "torpor-cli").write_text(f"{first_line}\n{script}")
    (folder / "torpor-cli").chmod(0o755)
    return folder / "torpor"


def _of_a_user(home: Path) -> dict[str, str]:
    base = home / "base"
    code = "import site; print(site.getusersitepackages())"
    packages = Path(subprocess.check_output([BASE, "-c", code], env={"PYTHONUSERBASE": str(base)}, text=True).strip())
    (packages / "torpor-1.dist-info").mkdir(parents=True)
    (packages / "torpor.pth").write_text("\n".join(OWN + NEEDED))
    return {"PYTHONUSERBASE": str(base)}


def _in_pythonpath(home: Path) -> dict[str, str]:
    del home
    return {"PYTHONPATH": os.pathsep.join(OWN + NEEDED)}


@pytest.mark.parametrize(
    ("places", "first_line"),
    [
        *product([_of_a_user, _in_pythonpath], [f"#!{BASE}", "#!{}/a b/python", SHELL]),
        (_in_pythonpath, f"#!{BASE} -s"),
    ],
)
def test_torpor_is_found_where_pip_installs_it_elsewhere(
    tmp_path: Path, places: Callable[[Path], dict[str, str]], first_line: str
) -> None:
    """For one user, or in a directory that PYTHONPATH names; as pip and others write the first line of a script."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/python").symlink_to(BASE)
    command = _install(tmp_path / "bin", first_line.format(tmp_path))
    link = tmp_path / "freeze"
    link.symlink_to(command)
    given = {"PATH": os.environ["PATH"], "LANG": "C", **places(tmp_path)}
    done = subprocess.run([link, "run", "--", "env", "-0"], env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(word.split("=", 1) for word in done.stdout.split("\0") if word) == given


def test_what_torpor_needs_may_be_in_pythonpath_alone(tmp_path: Path) -> None:
    """As where pip has found it there, and so has not installed it beside Torpor."""
    subprocess.run([BASE, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "torpor.pth").write_text("\n".join(OWN))
    command = _install(tmp_path / "bin", f"#!{tmp_path}/venv/bin/python")
    given = {"PATH": os.environ["PATH"], "LANG": "C", "PYTHONPATH": os.pathsep.join(NEEDED)}
    done = subprocess.run([command, "run", "--", "env", "-0"], env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(word.split("=", 1) for word in done.stdout.split("\0") if word) == given


def test_a_part_of_the_command_is_missing(tmp_path: Path) -> None:
    command = shutil.copy(BIN / "torpor", tmp_path)
    done = subprocess.run([command, "ls"], capture_output=True, text=True, check=False)
    said = f"torpor: cannot start {tmp_path}/torpor-cli: install torpor again\n"
    assert (done.returncode, done.stdout, done.stderr) == (70, "", said)

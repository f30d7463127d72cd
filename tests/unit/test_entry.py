"""The beginning of the command: what is meant for a job's Python does not reach Torpor's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.users import BIN


def test_variables_for_the_jobs_python_do_not_reach_torpors(tmp_path: Path) -> None:
    """Packages of another Python, as module systems set PYTHONPATH, and what changes how Python ends."""
    packages = tmp_path / "packages"
    for name in ("_cffi_backend", "blake3", "click", "google", "queue", "typing"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("raise SystemExit(f'{__name__} of another Python')")
    given = {
        "PATH": os.environ["PATH"], "PYTHONPATH": f"{packages}", "PYTHONINSPECT": "1", "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error", "TORPOR_STORE": f"{tmp_path}/store", "LC_ALL": "", "LANG": "C", "empty": "",
    }  # fmt: skip
    words = [f"{BIN}/torpor", "run", "--every", "1h", "--", "env", "-0"]
    done = subprocess.run(words, cwd=packages, env=given, input="", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(word.split("=", 1) for word in done.stdout.split("\0") if word) == given


def test_the_command_keeps_its_name() -> None:
    script = "read -r _ _ _ command _ </proc/$PPID/stat; cat /proc/$command/comm"  # of the parent of torpor-init
    words = [f"{BIN}/torpor", "run", "--", "sh", "-c", script]
    for variables in ({}, {"PYTHONPATH": "/nonexistent"}):
        assert subprocess.check_output(words, env={**os.environ, **variables}, text=True) == "torpor\n"

"""A script that Torpor puts before a job's programs leaves their environment as it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from torpor_slurm import shell

ADDED = {"_", "PWD", "OLDPWD", "SHLVL"}
"""What any shell may add."""


@pytest.mark.skipif(not os.access("/bin/bash", os.X_OK), reason="without bash, sh has to do")
def test_the_environment_stays_as_it_is(tmp_path: Path) -> None:
    script, startup = tmp_path / "script", tmp_path / "startup"
    script.write_text(f"{shell.shebang()}exec env -0\n")
    script.chmod(0o755)
    startup.write_text("export MORE=1\n")
    given = {
        "PATH": os.environ["PATH"],
        "BASH_FUNC_module%%": "() { echo loaded; }",
        "A.B": "c",
        "BASH_ENV": str(startup),
    }
    told = subprocess.run([script], env=given, stdout=subprocess.PIPE, check=True).stdout.decode()
    found = dict(line.split("=", 1) for line in told.split("\0") if line)
    assert {name: value for name, value in found.items() if name not in ADDED} == given


def test_where_there_is_no_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert shell.shebang() == "#!/bin/sh\n"

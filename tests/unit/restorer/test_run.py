"""`torpor.run`: a command is saved, or it is said that it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from torpor.cli.run import _teller
from torpor.store import SnapshotInfo

TOLD = """
import _thread, sys
from pathlib import Path
from unittest import mock
import torpor, torpor.restorer.run
module = sys.modules["torpor.restorer.run"]
told = []
def failed(error):
    told.append(str(error))
    Path("told").touch()
def fails(*_, **__):
    raise RuntimeError("no luck")
with mock.patch.object(*{patch}, fails):
    code = torpor.run(["sh", "-c", "until test -e told; do sleep 0.01; done; exit 3"], every=0.01, failed=failed)
assert code == 3, code
assert len(told) == 2 and told[0] == told[1] and told[0].startswith("it runs on and is saved no more: "), told
"""


@pytest.mark.parametrize("patch", ['(module, "checkpoint")', '(_thread, "start_new_thread")'])
def test_a_saver_that_dies_is_heard(tmp_path: Path, patch: str) -> None:
    """At once, as the command waits for it, and once more at its end; the command's exit code stands."""
    words = TOLD.replace("{patch}", patch)
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), float("-inf"), 1e300, 1e9])
def test_a_time_that_is_none_is_refused(tmp_path: Path, every: float) -> None:
    with pytest.raises(ValueError, match="a number of seconds"):
        torpor.run(["touch", str(tmp_path / "begun")], every=every)
    assert not (tmp_path / "begun").exists()


def test_what_a_wake_will_not_bring_back_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    tell = _teller()
    for notices in (("a connection is lost",), (), ("a connection is lost", "a line is \x1b[31mlost")):
        tell(SnapshotInfo("20261123-000000000-aaaaaa", "", notices=notices))
    told = capsys.readouterr().err.splitlines()
    assert told == ["torpor: note: saved, but a connection is lost", "torpor: note: saved, but a line is \\x1b[31mlost"]

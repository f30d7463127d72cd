"""torpor(1)."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from torpor import cli
from torpor.cli.manual import _text, page
from torpor.util import settings


def test_it_has_every_command_and_setting() -> None:
    text = page("1.0")
    assert [word for word in cli.COMMANDS if f'\n.SS "torpor {word}' not in text] == []
    assert '\n.SS "torpor slurm requeue' in text
    assert [name for name in settings.SETTINGS if name.replace("-", r"\-") not in text] == []


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_groff_takes_it_without_a_warning() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww"], input=page("1.0"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Save process PID, or the job NAME of `torpor ps`, and all that it started" in " ".join(done.stdout.split())


def test_nothing_in_a_help_is_a_request() -> None:
    assert _text(r""".x 'a' "b" \c --d""") == r"""\&.x 'a' \(dqb\(dq \ec \-\-d"""

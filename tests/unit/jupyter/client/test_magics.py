"""Magics where no server is: what is told is what has happened."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import ipykernel.connect
import pytest
from traitlets.config import MultipleInstanceError

from torpor.errors import CheckpointFailed
from torpor_jupyter.client import helper
from torpor_jupyter.client.magics import TorporMagics


def test_a_helper_that_is_killed_has_saved_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    def start(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        Path(command[-3], "pid").write_text(str(ended.pid))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", start)
    with pytest.raises(CheckpointFailed, match="the helper process ended before it had saved this kernel"):
        helper.checkpoint("name")


def test_a_terminals_ipython_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_app() -> str:
        raise MultipleInstanceError

    monkeypatch.setattr(ipykernel.connect, "get_connection_file", another_app)
    assert TorporMagics.__new__(TorporMagics)._kernel_id() == ""

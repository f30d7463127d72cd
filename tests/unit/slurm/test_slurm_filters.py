"""Waiting for the filters that an application leaves behind, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conformance.harness import wait_until
from torpor_slurm import filters
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.step import job_processes

SLOW = "import sys; sys.stdin.read(); print('last', flush=True)"


def test_what_it_reads_last_is_waited_for(tmp_path: Path) -> None:
    environment = {**os.environ, ENV_FILE: str(tmp_path / "env")}
    with open(tmp_path / "out", "w") as out:
        child = subprocess.Popen([sys.executable, "-c", SLOW], stdin=subprocess.PIPE, stdout=out, env=environment)
    assert child.stdin
    child.stdin.close()
    try:
        filters.wait_for_end(tmp_path / "env")
        assert (tmp_path / "out").read_text() == "last\n"
    finally:
        child.wait()


def test_what_does_not_end_is_waited_for_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that reads from no pipe is not waited for at all, nor is what belongs to another job."""
    own, other = ({**os.environ, ENV_FILE: str(tmp_path / name)} for name in ("env", "other"))
    sleep = ["sleep", "1000"]
    children = [
        subprocess.Popen(sleep, stdin=subprocess.PIPE, env=other),
        subprocess.Popen(sleep, stdin=subprocess.DEVNULL, env=own),
    ]
    try:
        monkeypatch.setattr(filters, "LONGEST", 1e6)
        filters.wait_for_end(tmp_path / "env")
        children.append(subprocess.Popen(sleep, stdin=subprocess.PIPE, env=own))
        mine = {ENV_FILE: str(tmp_path / "env")}  # its environment is there only some time after its descriptors
        wait_until(lambda: children[-1].pid in dict(job_processes.environments(mine)), "it to belong to the job")
        monkeypatch.setattr(filters, "LONGEST", 0.2)
        began = time.monotonic()
        filters.wait_for_end(tmp_path / "env")
        assert time.monotonic() - began >= 0.2
    finally:
        for child in children:
            child.kill()
            child.communicate()

"""A store whose file system shows hosts nothing of each other's flock(2): two FUSE mounts of one directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.store.store_content import load, save
from torpor.errors import StoreError
from torpor.store import Store

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"),
    reason="needs root, bindfs and FUSE",
)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one directory."""
    (tmp_path / "disk").mkdir()
    with ExitStack() as stack:
        paths = (tmp_path / "here", tmp_path / "there")
        for path in paths:
            path.mkdir()
            subprocess.run(["bindfs", tmp_path / "disk", path], check=True)
            stack.callback(subprocess.check_call, ["umount", path])
        yield paths


HOLDS = """
import sys, torpor
with torpor.Store(sys.argv[1]).writer("tree") as saver:
    saver.add_blocks(memoryview(b"abc"), [3])
    print("ready", flush=True)
    sys.stdin.readline()
    saver.publish(b"", "")
"""


def test_a_prune_sees_a_saver_of_another_host(mounts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.store.store.GATE_PATIENCE", 0.1)
    here, there = (Store(mount / "store") for mount in mounts)
    save(here, b"abc")
    with open(mounts[0] / "f", "w") as one, open(mounts[1] / "f", "w") as two:
        for file in (one, two):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # both have it
    command = [sys.executable, "-c", HOLDS, there.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdout and saver.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match=f"a checkpoint uses it .process {saver.pid} on "):
            here.prune(0)
        saver.communicate("\n")
    assert saver.returncode == 0
    assert len(here.ids()) == 2 and here.verify() == []
    with there.open("latest"), pytest.raises(StoreError, match="a restore or another reader uses it"):
        here.prune(1)
    assert len(here.prune(1).snapshots) == 1
    assert there.verify() == []
    save(there, b"x")
    assert load(here) == [b"x"]

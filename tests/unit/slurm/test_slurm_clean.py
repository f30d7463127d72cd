"""`torpor slurm clean` removes the directories of jobs that are over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor.store import SnapshotInfo
from torpor_slurm.clean import clean
from torpor_slurm.job_directory import RUN_TAG, JobDirectory


def publish(directory: JobDirectory, run: int) -> SnapshotInfo:
    with directory.store.writer("tree", {RUN_TAG: str(run)}) as writer:
        return writer.publish(b"", "")


def test_only_jobs_that_are_over_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $2 = config ] && exec echo ClusterName = c\n"
        f"[ $4 = 1 ] && exec echo '{LINE}'\n"
        "[ $4 = 3 ] && echo 'Unable to contact slurm controller' >&2 || echo 'Invalid job id specified' >&2\nexit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    names = ("c-1", "c-2", "c-3", "d-2", "d-4", "c-5")
    directories = {name: JobDirectory(tmp_path, name[-1], name[:-2]) for name in names}
    for directory in directories.values():
        directory.begin(0, "n1", 1.0)
        directory.update_state(phase="running")
        publish(directory, 0)
    directories["d-4"].finish(0, 0)
    assert clean(str(tmp_path), 3600) == [], "all are young"
    for directory in directories.values():
        for path in directory.path.glob("[sf]*"):
            os.utime(path, (1, 1))
    assert JobDirectory(tmp_path, "5", "c").begin(0, "n1", 2.0) == []  # the id is used again
    removed = clean(str(tmp_path), 3600)
    assert sorted(path.name.partition(".until")[0] for path in removed) == ["c-2", "c-5", "d-4"]
    assert sorted(path.name for path in tmp_path.glob("slurm/*")) == ["c-1", "c-3", "c-5", "d-2", "nodes"]

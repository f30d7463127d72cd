"""A job's directory: runs, the fence, and what is kept for later runs and for people."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.store.power import lasting, names_of, tree_of
from torpor.errors import NotFound, Refused
from torpor.store import SnapshotInfo
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.job_directory import KEEP, RUN_TAG, JobDirectory
from torpor_slurm.step.job_files import next_step


def publish(directory: JobDirectory, run: int) -> SnapshotInfo:
    with directory.store.writer("tree", {RUN_TAG: str(run)}) as writer:
        return writer.publish(b"", "")


def ids(snapshots: list[SnapshotInfo]) -> list[str]:
    return [one.id for one in snapshots]


def test_the_next_run_finds_what_the_last_one_left(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    assert directory.begin(0, "n1", 1.0) == []
    first, second = publish(directory, 0), publish(directory, 0)
    assert ids(directory.begin(1, "n2", 2.0)) == ids([second, first])
    third = publish(directory, 1)
    assert ids(directory.begin(3, "n1", 3.0)) == ids([third, second, first])


def test_what_a_dead_run_publishes_late_is_never_woken(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    good = publish(directory, 0)
    found = directory.begin(1, "n2", 2.0)
    assert directory.is_fenced(0)
    assert not directory.is_fenced(1)
    late = publish(directory, 0)
    assert ids(directory.begin(2, "n1", 3.0)) == ids([good])
    later = [publish(directory, 2) for _ in range(KEEP)]
    directory.prune(2, found)
    assert late.id not in ids(directory.store.snapshots())
    assert ids(directory.store.snapshots()) == ids(later)


def test_a_dead_run_that_goes_on_takes_nothing_from_the_next(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    found = directory.begin(0, "n1", 1.0)
    publish(directory, 0)
    directory.begin(1, "n2", 2.0)
    good = publish(directory, 1)
    own = [publish(directory, 0) for _ in range(KEEP)]
    directory.prune(0, found)
    assert ids(directory.store.snapshots()) == ids([good, *own])
    directory.finish(0, 0)
    assert ids(directory.store.snapshots()) == ids([good])


def test_of_two_supervisors_that_begin_at_once_one_gets_the_run(tmp_path: Path) -> None:
    directories = [JobDirectory(tmp_path, "12", "c") for _ in range(8)]
    barrier = threading.Barrier(len(directories))

    def begin(directory: JobDirectory) -> bool:
        barrier.wait()
        try:
            directory.begin(0, "n1", 1.0)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(len(directories)) as pool:
        assert sum(pool.map(begin, directories)) == 1


def test_a_store_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"on n2 there is no store .*is it mounted there"):
        JobDirectory(tmp_path / "unmounted", "12", "c").begin(1, "n2", 2.0)
    assert not (tmp_path / "unmounted").exists()


def test_one_supervisor_per_run(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(1, "n1", 1.0)
    for run in (1, 0):
        with pytest.raises(Refused, match="it has a supervisor already"):
            directory.begin(run, "n1", 1.0)


def test_an_id_that_is_used_again_is_another_job(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    publish(directory, 0)
    assert JobDirectory(tmp_path, "12", "c").begin(0, "n1", 2.0) == []
    assert len(list(tmp_path.glob("slurm/c-12.until-*/snapshots/*"))) == 1


def test_a_finished_job_keeps_its_code_and_no_snapshots(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    assert directory.finished is None
    directory.begin(0, "n1", 1.0)
    publish(directory, 0)
    directory.finish(0, -9)
    assert directory.finished is not None
    assert directory.finished.code == -9
    assert directory.store.snapshots() == []


def test_the_environment_file_is_what_a_shell_reads(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    directory.write_environment({"SLURM_A": "it's\n$HOME", "SLURM_B": "2"})
    script = '. "$0"; printf %s "$SLURM_A$SLURM_B"'
    told = subprocess.run(["sh", "-c", script, directory.environment_file], check=True, capture_output=True)
    assert told.stdout == b"it's\n$HOME2"


def test_the_state_of_a_job_is_read_by_programs(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "my-cluster")
    directory.begin(0, "n1", 1.0)
    directory.update_state(phase="running")
    directory.update_state(node="n1")
    assert json.loads((directory.path / "state").read_text()) == {"phase": "running", "node": "n1"}
    assert [one.path for one in JobDirectory.all(tmp_path)] == [directory.path]
    shutil.rmtree(directory.path)
    assert JobDirectory.all(tmp_path) == []


def test_a_state_that_cannot_be_read_is_written_anew(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    for text in ("", "[1]", "\0" * 9):
        (directory.path / "state").write_text(text)
        assert directory.state == {}
        directory.update_state(phase="running")
        assert directory.state == {"phase": "running"}


def test_a_job_goes_on_when_its_state_cannot_be_written(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    (directory.path / "state").mkdir()
    directory.update_state(phase="running")
    assert "the state was not kept" in (directory.path / "log").read_text()


def test_what_a_job_says_is_on_disk_before_anything_follows_from_it(tmp_path: Path, disk_steps: list[str]) -> None:
    """A loss of power does not take the fence, nor that the job has finished."""
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    disk_steps.clear()
    directory.finish(0, 3)
    assert disk_steps[:3] == ["file", "rename", "directory"]


def test_every_run_writes_the_stand_ins_and_keeps_the_first_script(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    stand_in = directory.stand_ins / "srun"
    for text in ("first", "second"):
        directory.write_stand_in("srun", text)
        directory.keep_script("job.sh", text.encode())
    script = directory.script("job.sh")
    assert (stand_in.read_text(), script.read_text()) == ("second", "first")
    assert stand_in.stat().st_mode & 0o777 == 0o700
    before = stand_in.stat().st_ino
    directory.write_stand_in("srun", "second")
    assert stand_in.stat().st_ino == before, "a shell in a snapshot may have it open"


def test_an_old_word_of_a_requeue_says_nothing_of_the_next_run(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "12", "c")
    directory.begin(0, "n1", 1.0)
    directory.own_requeue.touch()
    directory.begin(1, "n1", 2.0)
    assert not directory.own_requeue.exists()


def test_a_crash_of_the_host_takes_nothing_of_what_is_noted(tmp_path: Path) -> None:
    """Neither a file nor a directory that leads to it, whatever was not synced is gone."""
    directory = JobDirectory(tmp_path / "data" / "store", "12", "c")

    def act() -> None:
        for start in (1.0, 2.0):  # the second is another job with the same id
            directory.begin(0, "n1", start)
            directory.keep_script("job.sh", b"#!/bin/sh")
            directory.write_stand_in("srun", "#!/bin/sh")
            directory.write_environment({})
            (directory.cut / "a.log").touch(exist_ok=False)
            for _ in range(2):
                next_step({ENV_FILE: str(directory.environment_file)})
            directory.finish(0, 0)

    kept = lasting(tmp_path, act)
    assert {name for name in names_of(tree_of(tmp_path)) if not name.endswith("cut/a.log")} <= kept
    assert sum("/steps/" in name for name in kept) == 4

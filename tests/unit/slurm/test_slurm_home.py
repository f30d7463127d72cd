"""What a job of Slurm's keeps: its runs and the fence between them, its output, and what is cleaned up after it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import LINE
from torpor.errors import NotFound, Refused, RestoreFailed
from torpor.image import Tree
from torpor.store import SnapshotInfo
from torpor_slurm import rollback
from torpor_slurm.clean import clean
from torpor_slurm.home import KEEP, RUN_TAG, JobHome


def publish(home: JobHome, run: int) -> SnapshotInfo:
    with home.store.writer("tree", {RUN_TAG: str(run)}) as writer:
        return writer.publish(b"", "")


def ids(snapshots: list[SnapshotInfo]) -> list[str]:
    return [one.id for one in snapshots]


def test_the_next_run_finds_what_the_last_one_left(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    assert home.begin(0, "n1", 1.0) == []
    first, second = publish(home, 0), publish(home, 0)
    assert ids(home.begin(1, "n2", 2.0)) == ids([second, first])
    third = publish(home, 1)
    assert ids(home.begin(3, "n1", 3.0)) == ids([third, second, first])


def test_what_a_dead_run_publishes_late_is_never_woken(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    good = publish(home, 0)
    found = home.begin(1, "n2", 2.0)
    assert home.is_fenced(0)
    assert not home.is_fenced(1)
    late = publish(home, 0)
    assert ids(home.begin(2, "n1", 3.0)) == ids([good])
    later = [publish(home, 2) for _ in range(KEEP)]
    home.prune(2, found)
    assert late.id not in ids(home.store.snapshots())
    assert ids(home.store.snapshots()) == ids(later)


def test_a_dead_run_that_goes_on_takes_nothing_from_the_next(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    found = home.begin(0, "n1", 1.0)
    publish(home, 0)
    home.begin(1, "n2", 2.0)
    good = publish(home, 1)
    own = [publish(home, 0) for _ in range(KEEP)]
    home.prune(0, found)
    assert ids(home.store.snapshots()) == ids([good, *own])
    home.finish(0, 0)
    assert ids(home.store.snapshots()) == ids([good])


def test_of_two_supervisors_that_begin_at_once_one_gets_the_run(tmp_path: Path) -> None:
    homes = [JobHome(tmp_path, "12", "c") for _ in range(8)]
    barrier = threading.Barrier(len(homes))

    def begin(home: JobHome) -> bool:
        barrier.wait()
        try:
            home.begin(0, "n1", 1.0)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(len(homes)) as pool:
        assert sum(pool.map(begin, homes)) == 1


def test_a_store_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"on n2 there is no store .*is it mounted there"):
        JobHome(tmp_path / "unmounted", "12", "c").begin(1, "n2", 2.0)
    assert not (tmp_path / "unmounted").exists()


def test_one_supervisor_per_run(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(1, "n1", 1.0)
    for run in (1, 0):
        with pytest.raises(Refused, match="it has a supervisor already"):
            home.begin(run, "n1", 1.0)


def test_an_id_that_is_used_again_is_another_job(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    publish(home, 0)
    assert JobHome(tmp_path, "12", "c").begin(0, "n1", 2.0) == []
    assert len(list(tmp_path.glob("slurm/c-12.until-*/snapshots/*"))) == 1


def test_a_finished_job_keeps_its_code_and_no_snapshots(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    assert home.finished is None
    home.begin(0, "n1", 1.0)
    publish(home, 0)
    home.finish(0, -9)
    assert home.finished is not None
    assert home.finished.code == -9
    assert home.store.snapshots() == []


def test_the_environment_file_is_what_a_shell_reads(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    home.write_environment({"SLURM_A": "it's\n$HOME", "SLURM_B": "2"})
    told = subprocess.run(
        ["sh", "-c", '. "$0"; printf %s "$SLURM_A$SLURM_B"', home.environment_file], check=True, capture_output=True
    )
    assert told.stdout == b"it's\n$HOME2"


def image_of(path: Path, flags: int, position: int, size: int, ino: int | None = None) -> Tree:
    image = Tree()
    description = image.descriptions.add(flags=flags)
    description.file.path = os.fsencode(path)
    description.file.position, description.file.size = position, size
    description.file.ino = path.stat().st_ino if ino is None else ino
    return image


def test_output_is_brought_back_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    aside = rollback.cut(tail, tmp_path, "run1")
    assert path.read_text() == "one\n"
    assert aside.read_text() == "two\nthree\n"


@pytest.mark.parametrize(
    ("flags", "position", "size", "found"),
    [
        (os.O_WRONLY | os.O_APPEND, 0, 4, 1),
        (os.O_WRONLY, 4, 4, 1),
        (os.O_RDWR, 2, 4, 0),
        (os.O_RDONLY, 4, 4, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 9, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 8, 0),
    ],
)
def test_only_what_is_written_at_its_end_is_cut(
    tmp_path: Path, flags: int, position: int, size: int, found: int
) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert len(list(rollback.tails(image_of(path, flags, position, size)))) == found
    assert list(rollback.tails(image_of(path, flags, position, size, ino=1))) == []


def test_output_that_cannot_be_kept_aside_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    with pytest.raises(RestoreFailed, match="cannot be brought back to its 4 bytes"):
        rollback.cut(tail, tmp_path / "nowhere", "run1")
    assert path.read_text() == "one\ntwo\n"


def test_the_state_of_a_job_is_read_by_programs(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "my-cluster")
    home.begin(0, "n1", 1.0)
    home.tell(phase="running")
    home.tell(node="n1")
    assert json.loads((home.path / "state").read_text()) == {"phase": "running", "node": "n1"}
    assert [one.path for one in JobHome.all(tmp_path)] == [home.path]
    shutil.rmtree(home.path)
    assert JobHome.all(tmp_path) == []


def test_only_jobs_that_are_over_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $2 = config ] && exec echo ClusterName = c\n"
        f"[ $4 = 1 ] && exec echo '{LINE}'\n"
        "[ $4 = 3 ] && echo 'Unable to contact slurm controller' >&2 || echo 'Invalid job id specified' >&2\nexit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    homes = {name: JobHome(tmp_path, name[-1], name[:-2]) for name in ("c-1", "c-2", "c-3", "d-2", "d-4", "c-5")}
    for home in homes.values():
        home.begin(0, "n1", 1.0)
        home.tell(phase="running")
        publish(home, 0)
    homes["d-4"].finish(0, 0)
    assert clean(str(tmp_path), 3600) == [], "all are young"
    for home in homes.values():
        for path in home.path.glob("[sf]*"):
            os.utime(path, (1, 1))
    assert JobHome(tmp_path, "5", "c").begin(0, "n1", 2.0) == []  # the id is used again
    removed = clean(str(tmp_path), 3600)
    assert sorted(path.name.partition(".until")[0] for path in removed) == ["c-2", "c-5", "d-4"]
    assert sorted(path.name for path in tmp_path.glob("slurm/*")) == ["c-1", "c-3", "c-5", "d-2"]


def test_what_a_job_says_is_on_disk_before_anything_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power does not take the fence, nor that the job has finished."""
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(fd: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    home.finish(0, 3)
    assert done[:3] == ["file", "rename", "folder"]


def test_the_ends_of_two_files_with_one_name_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk before the file is cut."""
    done: list[str] = []
    sync = os.fsync

    def synced(fd: int) -> None:
        done.append(f"{stat.S_ISDIR(os.fstat(fd).st_mode)} {path.stat().st_size}")
        sync(fd)

    monkeypatch.setattr(os, "fsync", synced)
    (tmp_path / "cut").mkdir()
    kept = []
    for folder, words in (("a", b"one and more"), ("b", b"one or less")):
        path = tmp_path / folder / "out"
        path.parent.mkdir()
        path.write_bytes(words)
        kept.append(rollback.cut(rollback.Tail(str(path), 3, len(words)), tmp_path / "cut", "run1"))
        assert path.read_bytes() == b"one"
    assert [copy.read_bytes() for copy in kept] == [b" and more", b" or less"]
    assert done == ["False 12", "True 12", "False 11", "True 11"]


def test_a_file_that_is_open_twice_keeps_all_that_was_in_it(tmp_path: Path) -> None:
    """Of two lengths that a snapshot tells, as the file grew in between, the longer one counts."""
    path = tmp_path / "out"
    path.write_bytes(b"one, two, three")
    image = Tree()
    for size in (8, 3):
        description = image.descriptions.add(flags=os.O_WRONLY | os.O_APPEND)
        description.file.path, description.file.size, description.file.ino = bytes(path), size, path.stat().st_ino
    assert list(rollback.tails(image)) == [rollback.Tail(str(path), 8, 15)]

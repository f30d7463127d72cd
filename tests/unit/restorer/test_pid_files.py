"""Lock and PID files that name a PID of a tree: which are found, which are not, and how many are looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.users import User
from torpor.image import image_pb2 as pb
from torpor.restorer import pid_files

PID, CHILD = 4711, 4712


def tree(
    directory: Path, *, uid: int | None = None, locked: Sequence[Path] = (), opened: Sequence[Path] = ()
) -> pb.Tree:
    image = pb.Tree()
    user = os.geteuid() if uid is None else uid
    root = image.processes.add(pid=PID, cwd=os.fsencode(directory), credentials=pb.Credentials(uids=[user] * 4))
    image.processes.add(pid=CHILD, cwd=os.fsencode(directory), credentials=pb.Credentials(uids=[user] * 4))
    for path in (*locked, *opened):
        description = image.descriptions.add()
        description.file.path = os.fsencode(path)
        entry = root.fds.add(description=len(image.descriptions) - 1)
        if path in locked:
            entry.locks.add(kind=pb.Lock.POSIX)
    return image


def found(image: pb.Tree, *places: Path) -> dict[str, int]:
    return {Path(path).name: pid for path, pid in pid_files.named(image, tuple(map(str, places)))}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.pid", "4711\n"),
        ("job.lock", "      4711\n"),
        ("job.lck", "host pid=4711 since today"),
        ("postmaster.pid", "4711\n/var/lib/data\n1700000000\n5432\n"),
    ],
)
def test_files_that_name_a_pid(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert found(tree(tmp_path)) == {name: PID}


@pytest.mark.parametrize(
    ("name", "target"),
    [(".#paper.tex", "me@host.4712:1700000000"), ("lock", "127.0.1.1:+4712"), ("SingletonLock", "host-4712")],
)
def test_links_that_name_a_pid(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / name).symlink_to(target)
    assert found(tree(tmp_path)) == {name: CHILD}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.pid", "47110 04711 14711 a4711 4711b 4711_ _4711"),
        ("job.pid", "4711 " + " " * pid_files.SIZE),
        ("job.pid", ""),
        ("job.txt", "4711"),
    ],
)
def test_files_that_name_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert found(tree(tmp_path)) == {}


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "directory.pid").mkdir()
    os.mkfifo(tmp_path / "fifo.pid")
    (tmp_path / "gone.pid").symlink_to("nowhere")
    (tmp_path / "secret.pid").write_text("4711")
    (tmp_path / "secret.pid").chmod(0)
    (tmp_path / "right.pid").write_text("4711")
    assert found(tree(tmp_path)).keys() - {"secret.pid"} == {"right.pid"}
    assert found(tree(tmp_path / "nowhere")) == {}


def test_a_locked_file_by_any_name_and_what_lies_beside_an_open_one(tmp_path: Path) -> None:
    locked, opened, beside = tmp_path / "a/instance", tmp_path / "b/data", tmp_path / "b/data.pid"
    for path in (locked, opened, beside):
        path.parent.mkdir(exist_ok=True)
        path.write_text("4711")
    assert found(tree(tmp_path, locked=[locked], opened=[opened])) == {"instance": PID, "data.pid": PID}


def test_a_file_under_lease_is_not_opened(tmp_path: Path) -> None:
    leased = tmp_path / "leased.pid"
    leased.write_text("4711")
    image = tree(tmp_path, locked=[leased])
    image.processes[0].fds[0].locks[0].kind = pb.Lock.LEASE
    assert found(image) == {}


def test_places_and_each_file_once(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "job.pid").write_text("4711")
    os.link(place / "job.pid", tmp_path / "another.pid")
    assert len(found(tree(tmp_path), place)) == 1
    assert found(tree(tmp_path / "nowhere"), place, place) == {"job.pid": PID}


def test_nobody_else_is_looked_at(tmp_path: Path) -> None:
    """Not the processes of another user, nor one with a root directory of its own: its paths are not ours."""
    (tmp_path / "job.pid").write_text("4711")
    assert found(tree(tmp_path, uid=os.geteuid() + 1)) == {}
    image = tree(tmp_path)
    for process in image.processes:
        process.root = b"/srv"
    assert found(image) == {}


def test_root_looks_with_the_rights_of_a_trees_user(ordinary_account: User) -> None:
    """At that user's files, where that user may look."""
    if os.geteuid():
        pytest.skip("needs root; the tests run as an ordinary user")
    theirs, roots = ordinary_account.tmp / "theirs", ordinary_account.tmp / "roots"
    for directory in (theirs, roots):
        directory.mkdir()
        for name in ("a.pid", "b.pid"):
            (directory / name).write_text("4711")
        ordinary_account.own(directory / "a.pid")
        (directory / "lock").symlink_to("host-4712")
        os.chown(directory / "lock", ordinary_account.uid, ordinary_account.gid, follow_symlinks=False)
    roots.chmod(0o700)
    image = tree(theirs, uid=ordinary_account.uid)
    for process in image.processes:
        process.credentials.gids[:] = [ordinary_account.gid] * 4
    assert found(image, roots) == {"a.pid": PID, "lock": CHILD}
    roots.chmod(0o755)
    assert len(list(pid_files.named(image, (str(roots),)))) == 4


def test_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"{number}.pid").write_text("4711")
    assert len(found(tree(tmp_path))) == 20
    for name, bound in (("LOOKED_AT", 5), ("ENTRIES", 3), ("DIRECTORIES", 0)):
        monkeypatch.setattr(pid_files, name, bound)
        assert len(found(tree(tmp_path))) == bound


def test_in_words(tmp_path: Path) -> None:
    (tmp_path / "0.pid").write_text("4711")
    begin = "it is in a capsule: programs outside do not see its PIDs, and may take its lock files for stale: "
    assert list(pid_files.warnings(tree(tmp_path), ())) == [f"{begin}{tmp_path}/0.pid names 4711"]
    for number in range(1, 7):
        (tmp_path / f"{number}.pid").write_text("4712")
    (words,) = pid_files.warnings(tree(tmp_path), ())
    assert words.endswith(" and 3 more")
    assert list(pid_files.warnings(tree(tmp_path / "nowhere"), ())) == []

"""Files and directories: where they stand, what became of them meanwhile, and who may open them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, acting_as, dumped, holder, opened
from tests.users import User
from torpor.image.image_pb2 import Tree
from torpor.objects.fds import descriptors
from torpor.objects.paths import fingerprints
from torpor.objects.process import mounts


def position(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_CUR)


def test_files_come_back_at_their_position_and_with_their_flags(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        log = tmp / "log"
        log.write_bytes(b"0123456789")
        fds, image = dumped(
            f"""
a = os.open({str(log)!r}, os.O_RDWR); os.lseek(a, 4, 0)
b = os.dup(a); os.set_inheritable(b, True)
c = os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_DSYNC)
d = os.open({str(log)!r}, os.O_RDONLY | os.O_NONBLOCK); os.lseek(d, 7, 0)
ready(a=a, b=b, c=c, d=d)
wait()
"""
        )
        with log.open("ab") as file:
            file.write(b"grown")
        with opened(image) as woken:
            a, b, c, d = (woken(fds[name]) for name in "abcd")
            assert a == b, "a description that dup shared is one"
            assert len({a, c, d}) == 3
            assert (position(a), position(d)) == (4, 7)
            assert os.read(a, 3) == b"456"
            os.write(c, b"!")
            assert log.read_bytes() == b"0123456789grown!"
            flags = fcntl.fcntl(c, fcntl.F_GETFL)
            assert flags & os.O_APPEND and flags & os.O_DSYNC == os.O_DSYNC
            assert fcntl.fcntl(d, fcntl.F_GETFL) & os.O_NONBLOCK
        entries = {entry.fd: entry for entry in image.processes[0].fds}
        assert [entries[fds[name]].cloexec for name in "abcd"] == [True, False, True, True]

    acting(body)


def test_a_description_shared_by_fork_is_one(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "data").write_bytes(b"0123456789")
        with holder(
            f"""
shared = os.open({str(tmp / "data")!r}, os.O_RDONLY)
own = os.open({str(tmp / "data")!r}, os.O_RDONLY)
if os.fork() == 0:
    os.close(own)
    own = os.open({str(tmp / "data")!r}, os.O_RDONLY)
    ready(); signal.pause()
os.read(shared, 3)
ready(shared=shared, own=own)
wait()
"""
        ) as tree:
            tree.ready()
            tree.ready()
            fds = tree.fds
            image = tree.dump()
        first, second = (process.pid for process in image.processes)
        with opened(image) as woken:
            assert woken.index(fds["shared"], first) == woken.index(fds["shared"], second)
            assert woken.index(fds["own"], first) != woken.index(fds["own"], second)
            assert position(woken(fds["shared"])) == 3

    acting(body)


def _image_of_file(path: Path, code: str) -> Tree:
    with holder(f"f = os.open({str(path)!r}, {code})\nready(f=f)\nwait()") as tree:
        tree.ready()
        return tree.dump()


def test_a_file_that_is_missing_cut_or_replaced_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    image = _image_of_file(file, "os.O_RDWR); os.lseek(f, 50, 0")

    def reasons() -> str:
        return "\n".join(map(str, descriptors.validate(image)))

    assert reasons() == ""
    os.truncate(file, 60)
    assert "cut from 100 to 60 bytes; " in reasons(), "not at the program's position, but it may read it"
    os.truncate(file, 40)
    assert "cut from 100 to 40 bytes, and the program is at byte 50" in reasons()
    (tmp_path / "new").write_bytes(b"y" * 80)
    os.rename(tmp_path / "new", file)
    assert "another file has taken its place: 80 bytes where there were 100" in reasons()
    (tmp_path / "new").write_bytes(b"y" * 120)
    os.rename(tmp_path / "new", file)
    assert "put the old file back" in reasons(), "told as another one, or as changed: inode numbers are used again"
    (tmp_path / "new").write_bytes(b"x" * 120)
    os.rename(tmp_path / "new", file)
    assert reasons() == "", "another one that begins with all that the old one held"
    file.unlink()
    assert str(file) in reasons() and "No such file" in reasons()
    os.mkfifo(file)
    assert "no regular file any more" in reasons()


def test_a_log_that_was_rotated_is_no_reason_to_refuse(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"x" * 100)
    image = _image_of_file(file, "os.O_WRONLY | os.O_APPEND); os.write(f, b'y'")
    os.truncate(file, 0)
    assert descriptors.validate(image) == []


def test_files_the_restoring_user_may_not_open_are_refused(ordinary_account: User) -> None:
    file = ordinary_account.tmp / "root's"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    os.chown(file, 0, 0) if os.geteuid() == 0 else pytest.skip("needs root")
    image = _image_of_file(file, "os.O_RDONLY")

    def body() -> None:
        assert ["Permission denied" in str(reason) for reason in descriptors.validate(image)] == [True]

    acting_as(ordinary_account, body)


def test_a_file_that_its_user_could_not_open_again_is_refused_in_time(ordinary_account: User) -> None:
    def body() -> None:
        with holder(
            "f = os.open('x', os.O_CREAT | os.O_RDWR, 0)\nready(f=f)\nwait()", cwd=ordinary_account.tmp
        ) as tree:
            tree.ready()
            (reason,) = tree.survey()
            assert reason.why == "it cannot be opened again by its name: this user may not"

    acting_as(ordinary_account, body)


def test_opening_never_changes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    image = _image_of_file(file, "os.O_RDWR")
    index = next(i for i, d in enumerate(image.descriptions) if d.WhichOneof("kind") == "file")
    image.descriptions[index].flags |= os.O_TRUNC
    assert "invalid flags" in str(descriptors.validate(image))
    image.descriptions[index].flags &= ~os.O_TRUNC
    image.descriptions[index].flags |= os.O_CREAT
    image.descriptions[index].file.path = bytes(tmp_path / "new")
    assert descriptors.validate(image)
    assert sorted(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"content"


def test_directories_and_names_only(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        for name in "abcdefgh":
            (tmp / name).touch()
        fds, image = dumped(
            f"""
d = os.open({str(tmp)!r}, os.O_RDONLY | os.O_DIRECTORY)
p = os.open({str(tmp / "a")!r}, os.O_PATH)
os.listdir(d)
ready(d=d, p=p)
wait()
"""
        )
        with opened(image) as woken:
            assert position(woken(fds["d"])) == image.descriptions[woken.index(fds["d"])].directory.position
            assert Path(f"/proc/self/fd/{woken(fds['d'])}").readlink() == tmp
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.read(woken(fds["p"]), 1)

    acting(body)


def test_a_regular_file_in_stdio_is_opened_again(tmp_path: Path) -> None:
    output = tmp_path / "slurm.out"
    with output.open("ab") as file, holder('os.write(2, b"hello\\n"); ready(); wait()', stderr=file) as tree:
        tree.ready()
        image = tree.dump()
    with opened(image) as woken:
        os.write(woken(2), b"again\n")
    assert output.read_bytes() == b"hello\nagain\n"


def test_a_file_that_lost_its_name_is_kept_by_another_one(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        with holder(
            "f = os.open('x', os.O_CREAT | os.O_RDWR); os.link('x', 'y'); os.unlink('x'); ready(f=f); wait()", cwd=tmp
        ) as tree:
            f = tree.ready()["f"]
            assert tree.survey() == []
            image = tree.dump()
        with opened(image) as woken:
            assert os.path.samestat(os.fstat(woken(f)), os.stat(tmp / "y"))

    acting(body)


def test_a_file_that_was_moved_by_a_link_is_found_in_another_directory(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        code = """
os.makedirs("work"); os.makedirs("done/well"); os.chdir("work")
f = os.open("x", os.O_CREAT | os.O_RDWR); os.link("x", "../done/well/y"); os.unlink("x")
ready(f=f); wait()
"""
        with holder(code, cwd=tmp) as tree:
            f = tree.ready()["f"]
            assert tree.survey() == []
            image = tree.dump()
        with opened(image) as woken:
            assert os.path.samestat(os.fstat(woken(f)), os.stat(tmp / "done/well/y"))

    acting(body)


def test_what_was_changed_is_refused_but_may_be_taken_as_it_is(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "input").write_bytes(b"0123456789")
        (tmp / "log").write_bytes(b"0123456789")
        with holder(
            "f = os.open('input', os.O_RDONLY); g = os.open('log', os.O_RDONLY); ready(); wait()", cwd=tmp
        ) as tree:
            tree.ready()
            image = tree.dump()
        assert descriptors.validate(image) == []
        with (tmp / "log").open("ab") as log:
            log.write(b"more")
        (tmp / "input").write_bytes(b"9876543210")
        (reason,) = descriptors.validate(image)
        assert reason.changed and "input: it was changed since" in str(reason)

    acting(body)


def test_a_file_system_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    image = Tree()
    there = image.descriptions.add(flags=os.O_RDWR)
    there.file.path = os.fsencode(tmp_path / "scratch/run/output")
    image.mounts.add(path=os.fsencode(tmp_path / "scratch"), filesystem="nfs4", source="filer:/export")
    (reason,) = mounts.validate(image)
    assert "scratch (nfs4 of filer:/export): it is not mounted here" in str(reason)
    (tmp_path / "scratch/run").mkdir(parents=True)
    (tmp_path / "scratch/run/output").touch()
    assert list(mounts.validate(image)) == []


def test_a_path_that_is_too_long_to_be_told_is_refused(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        code = """
here = os.open(".", os.O_RDONLY)
for _ in range(20):
    os.mkdir("n" * 250); os.chdir("n" * 250)
f = os.open("file", os.O_CREAT | os.O_RDWR); os.fchdir(here); ready(); wait()
"""
        with holder(code, cwd=tmp) as tree:
            tree.ready()
            (reason,) = tree.survey()
        assert "its path is longer than the 4096 bytes that the kernel shows" in str(reason)

    acting(body)


def test_what_is_true_of_a_file_is_found_once_for_all_its_descriptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have opened one file ten thousand times: to look at all for each of them took minutes."""
    looked = 0
    look = fingerprints.writes_anywhere

    def counted(flags: int, position: int, size: int) -> bool:
        nonlocal looked
        looked += 1
        return look(flags, position, size)

    monkeypatch.setattr(fingerprints, "writes_anywhere", counted)
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    monkeypatch.setenv("TORPOR_SMALL_FILES", "0")  # it is not kept with the tree
    fds, image = dumped(f"ready(fds=[os.open({str(file)!r}, os.O_RDONLY) for _ in range(200)]); wait()")
    paths = [one.file.path for one in image.descriptions if one.file.path == os.fsencode(file)]
    assert len(paths) == len(fds["fds"]) == 200
    assert 200 <= looked < 300

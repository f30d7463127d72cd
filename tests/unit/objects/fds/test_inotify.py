"""Watches on files: what fdinfo shows of them, and what stands in the way of them here."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, holder, opened
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Inotify, Tree
from torpor.objects.fds import descriptors, inotify
from torpor.objects.paths.opener import Opener
from torpor.remote.sys import syscall

IN_CREATE, IN_ONESHOT = 0x100, 0x80000000


def image_of(*paths: Path) -> Tree:
    """An inotify that watches some paths."""
    image = Tree()
    message = image.descriptions.add(flags=os.O_RDONLY).inotify
    for number, path in enumerate(paths, 1):
        message.watches.add(number=number, mask=IN_CREATE, path=os.fsencode(path))
    image.processes.add(pid=1).fds.add(fd=3)
    return image


def watched(fd: int) -> int:
    """How many watches an inotify has."""
    return Path(f"/proc/self/fdinfo/{fd}").read_text().count("\ninotify wd:")


def test_watches_keep_their_numbers(acting: Acting) -> None:
    def body(tmp: Path) -> None:
        (tmp / "deep" / "er").mkdir(parents=True, exist_ok=True)
        with holder(
            """
libc = ctypes.CDLL(None)
n = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_rm_watch(n, libc.inotify_add_watch(n, b"deep", 0x100)); os.read(n, 100)
number = libc.inotify_add_watch(n, b"deep/er", 0x80000100)
ready(n=n, number=number)
print(wait(), flush=True)
open("deep/er/new", "w").close()
ready()
wait()
""",
            cwd=tmp,
        ) as tree:
            fds = tree.ready()
            assert tree.survey() == []
            image = tree.dump()
            assert tree.go_on("on") == "on"
            tree.ready()
            assert "it has unread events" in str(tree.survey())
        with opened(image) as woken:
            (watch,) = image.descriptions[woken.index(fds["n"])].inotify.watches
            assert watch.number == fds["number"]
            assert os.path.samefile(watch.path, tmp / "deep" / "er")  # root finds it by its handle, on any mount
            (tmp / "deep" / "er" / "newer").write_text("")
            assert int.from_bytes(os.read(woken(fds["n"]), 100)[:4], sys.byteorder) == fds["number"]
        (tmp / "deep" / "er").rename(tmp / "moved")
        assert "the program watches it, and here it cannot" in str(descriptors.validate(image))

    acting(body)


def test_what_the_kernel_shows_of_a_watch_is_read(tmp_path: Path) -> None:
    fd = syscall(NR.inotify_init1, os.O_CLOEXEC)
    try:
        number = ctypes.CDLL(None).inotify_add_watch(fd, os.fsencode(tmp_path), IN_CREATE | IN_ONESHOT)
        (watch,) = inotify._parse(Path(f"/proc/self/fdinfo/{fd}").read_bytes())
        assert (watch.number, watch.mask) == (number, IN_CREATE | IN_ONESHOT)
        assert watch.key == (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
    finally:
        os.close(fd)


def test_a_device_of_many_bits_and_a_handle_of_its_own_length_are_read() -> None:
    line = (
        b"inotify wd:ffff ino:%x sdev:%x mask:fce ignored_mask:0 fhandle-bytes:3 fhandle-type:f8 f_handle:0102030405\n"
    )
    (watch,) = inotify._parse(b"pos:\t0\nflags:\t02\n" + line % (2**40, (259 << 20) | 70_000))
    assert watch.key == (os.makedev(259, 70_000), 2**40)
    assert watch.handle == bytes([3, 0, 0, 0, 0xF8, 0, 0, 0, 1, 2, 3])


def test_a_watch_that_the_kernel_shows_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, acting: Acting) -> None:
    """Without CONFIG_EXPORTFS a line has no handle."""
    monkeypatch.setattr(inotify, "_WATCH", re.compile(rb"^inotify wd:([0-9a-f]+) no such line"))

    def body(tmp: Path) -> None:
        with holder(
            "n = ctypes.CDLL(None).inotify_init1(0); ctypes.CDLL(None).inotify_add_watch(n, b'.', 0x100)\n"
            "ready(n=n); wait()",
            cwd=tmp,
        ) as tree:
            tree.ready()
            assert "the kernel does not tell what it watches" in str(tree.survey())

    acting(body)


def test_a_file_without_a_name_that_the_tree_has_not_open_is_refused(acting: Acting) -> None:
    """A hard link outside of all that the tree uses would keep it, and cannot be found."""

    def body(tmp: Path) -> None:
        with holder(
            """
libc = ctypes.CDLL(None)
gone = os.open("gone", os.O_CREAT | os.O_RDWR); kept = os.open("kept", os.O_CREAT | os.O_RDWR)
n = libc.inotify_init1(0)
for name in (b"gone", b"kept"): assert libc.inotify_add_watch(n, name, 2) > 0
os.unlink("gone"); os.unlink("kept")
keeper = os.fork()
if keeper == 0:
    ready(); time.sleep(600)
os.close(gone)
ready(n=n, kept=kept); wait()
""",
            cwd=tmp,
        ) as tree:
            keeper = tree.ready()["pid"]
            if keeper == tree.process.pid:
                keeper = tree.ready()["pid"]
            else:
                tree.ready()
            tree.pids = [tree.process.pid]  # the file lives by a process that is not in the tree
            (reason,) = tree.survey()
            assert "for which no name was found in or near the directories of the tree" in reason.why

    acting(body)


def test_the_proof_of_a_living_tree_needs_no_second_set_of_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree's own count against max_user_watches, too: half of the limit is as much as it would be allowed."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.mkdir()
    before: list[int] = []
    add = inotify._add

    def counted(fd: int, watch: Inotify.Watch, opener: Opener) -> int:
        before.append(watched(fd))
        return add(fd, watch, opener)

    monkeypatch.setattr(inotify, "_add", counted)
    assert descriptors.validate(image_of(*paths), standing=True) == []
    assert before == [0, 0, 0]


def test_a_user_who_may_have_no_more_is_told_which_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: int) -> Callable[..., int]:
        def call(*_: object) -> int:
            raise OSError(error, os.strerror(error))

        return call

    with monkeypatch.context() as patch:
        patch.setattr(inotify, "syscall", refused(errno.EMFILE))
        (reason,) = descriptors.validate(image_of(tmp_path))
        assert "max_user_instances" in reason.advice
    with monkeypatch.context() as patch:
        patch.setattr(inotify, "_add", refused(errno.ENOSPC))
        (reason,) = descriptors.validate(image_of(tmp_path))
        assert "max_user_watches" in reason.advice
    (reason,) = descriptors.validate(image_of(tmp_path / "nothing"))
    assert "put it back" in reason.advice


@pytest.mark.parametrize(
    ("numbers", "mask", "held"),
    [([0], 2, 0), ([inotify.LAST_WATCH + 1], 2, 0), ([1, 1], 2, 0), ([1], 0x20000000, 0), ([1], 2, 9)],
)
def test_watches_that_no_checkpoint_writes_are_refused(
    tmp_path: Path, numbers: list[int], mask: int, held: int
) -> None:
    image = image_of()
    for number in numbers:
        image.descriptions[0].inotify.watches.add(number=number, mask=mask, held=held, path=os.fsencode(tmp_path))
    (reason,) = descriptors.validate(image)
    assert "invalid watches" in reason.why


def test_what_a_restore_itself_does_is_no_event(tmp_path: Path) -> None:
    with opened(image_of(tmp_path)) as woken:
        (tmp_path / "made").touch()
        woken.opened.built()
        os.set_blocking(woken(3), False)
        with pytest.raises(BlockingIOError):
            os.read(woken(3), 100)


def test_a_number_that_the_kernel_does_not_give_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CONFIG_CHECKPOINT_RESTORE the first watch is number 1, whatever it was."""
    image = image_of(tmp_path)
    image.descriptions[0].inotify.watches[0].number = 7
    monkeypatch.setattr(inotify, "INOTIFY_IOC_SETNEXTWD", 0x40044901)
    with pytest.raises(RestoreFailed, match="had the number 7 and got 1"), opened(image):
        pass

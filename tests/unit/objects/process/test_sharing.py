"""What tasks share: with a parent it is born again; memory, and what only others share, is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.process import sharing
from torpor.objects.process.sharing import KCMP_FILES, KCMP_FS
from torpor.remote.sys import syscall

CLONE_FS, CLONE_FILES = 0x200, 0x400


@contextmanager
def child(flags: int) -> Iterator[int]:
    """A child that shares something with us."""
    pid = syscall(NR.clone, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        while True:
            signal.pause()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("flags", "files", "folder"), [(0, False, False), (CLONE_FILES, True, False), (CLONE_FS, False, True)]
)
def test_what_a_child_shares_with_its_parent(flags: int, files: bool, folder: bool) -> None:
    me = os.getpid()
    with child(flags) as pid:
        assert sharing.with_parent(pid, [me], KCMP_FILES) == files
        assert sharing.with_parent(pid, [me], KCMP_FS) == folder
        assert not sharing.with_parent(pid, [], KCMP_FS), "the parent is outside of the tree"
        assert [reason for reason in sharing.unsupported([me, pid]) if str(pid) in reason.subject] == []


def test_siblings_that_share_without_their_parent_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE", 0.02)
    with child(CLONE_FS) as one, child(CLONE_FS) as other:
        (reason,) = sharing.unsupported([one, other])
        assert str(one) in reason.subject and str(other) in reason.subject
        assert "they share their current directory" in reason.why


def test_by_which_flags_a_process_is_born() -> None:
    assert sharing.clone_flags(pb.Process()) == 0
    assert sharing.clone_flags(pb.Process(shares_fs=True, shares_fds=True)) == CLONE_FS | CLONE_FILES


def test_what_no_checkpoint_writes() -> None:
    assert list(sharing.validate_form(pb.Process(shares_fds=True, shares_fs=True))) == []
    mixed = pb.Process(shares_fds=True)
    mixed.fds.add(fd=1)
    assert len(list(sharing.validate_form(mixed))) == 1
    assert len(list(sharing.validate_form(pb.Process(zombie=True, shares_fs=True)))) == 1

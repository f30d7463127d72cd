"""Landlock: asked only where nothing else could forbid what a domain forbids."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting
from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.objects.part import Answers
from torpor.objects.process import landlock, texts
from torpor.objects.process.landlock import PR_GET_DUMPABLE, Landlock
from torpor.remote.batch import Batch, Replies
from torpor.remote.sys import syscall

PR_SET_DUMPABLE = 4


@pytest.fixture(autouse=True)
def own_status_is_read_anew() -> Iterator[None]:
    """Another user asks in each test."""
    landlock._own_status.cache_clear()
    yield
    landlock._own_status.cache_clear()


def asked(mine: texts.Texts, **changed: bytes) -> bool:
    """Whether a process like this one, but for a few lines of its status, is asked to try."""
    status: Mapping[bytes, bytes] = {**mine.status, **{name.encode(): value for name, value in changed.items()}}
    batch = Batch()
    number = Landlock().ask(batch, replace(mine, status=status))
    assert (number is None) == (len(batch) == 0)
    return number is not None


def test_only_what_a_domain_alone_could_forbid_is_asked(acting: Acting) -> None:
    def body(_: Path) -> None:
        landlock._own_status.cache_clear()
        privileged = bool(int(procfs.status(procfs.read("/proc/self/status"))[b"CapPrm"], 16))
        dumpable = syscall(NR.prctl, PR_GET_DUMPABLE)
        try:
            syscall(NR.prctl, PR_SET_DUMPABLE, 1)
            mine = texts.grab(os.getpid())  # one that is not dumpable may not read all of its own
            syscall(NR.prctl, PR_SET_DUMPABLE, 0)  # as after a change of user ids
            assert not asked(mine)
            syscall(NR.prctl, PR_SET_DUMPABLE, 1)
            assert asked(mine) == (not privileged)
            assert not asked(mine, Uid=b"1\t2\t3\t4")
            assert not asked(mine, Gid=b"1\t2\t3\t4")
        finally:
            syscall(NR.prctl, PR_SET_DUMPABLE, dumpable)

    acting(body)


class _Replied:
    """The result of the one call."""

    def __init__(self, value: int) -> None:
        self.value = value

    def result(self, _: int) -> int:
        return self.value


@pytest.mark.parametrize(
    ("value", "refused"),
    [(0, False), (1, False), (3, False), (-errno.EPERM, True), (-errno.EACCES, True), (-errno.ENOSYS, False)],
)
def test_a_call_that_is_forbidden_is_a_domain(value: int, refused: bool) -> None:
    mine = texts.grab(os.getpid())
    answers = Answers(mine, cast(Replies, _Replied(value)), [], {})
    assert bool(list(Landlock().unsupported(1, answers))) == refused
    assert not list(Landlock().unsupported(None, answers))

"""A checkpoint is tried on a child first where filters bind all: what it finds is told, and the child is gone."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.leaks import no_more_descriptors
from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.dump import seccomp_dry_run
from torpor.errors import Refused
from torpor.objects.process import seccomp


def tried(count: int = 1) -> None:
    """Try it, though no filter is here, and forget what came of it."""
    seccomp_dry_run._dry_run.__wrapped__(count)


def children() -> list[int]:
    return procfs.children(os.getpid(), procfs.threads(os.getpid()))


@contextmanager
def many_descriptors(least: int) -> Iterator[None]:
    """The next descriptor is `least` or more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < least + 200:
        pytest.skip(f"this user may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, least + 200), hard))
    taken: list[int] = []
    try:
        while not taken or taken[-1] < least:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_nothing_is_denied_nothing_is_left() -> None:
    before = children()
    with no_more_descriptors():
        tried()
    assert children() == before


def test_a_program_with_many_descriptors_may_try_it() -> None:
    """As a Jupyter server may have them."""
    with many_descriptors(1030):
        tried()


def test_a_call_that_is_denied_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp_dry_run, "_take", lambda pid: {"getpid", "brk"})
    before = children()
    with no_more_descriptors(), pytest.raises(Refused, match="they deny brk, getpid, whose answers a checkpoint needs"):
        tried(3)
    assert children() == before


def test_a_call_for_which_the_child_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(pid: int) -> set[str]:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(seccomp_dry_run, "_take", lost)
    monkeypatch.setattr(seccomp_dry_run, "_is_killed", lambda nr: nr in (NR.kcmp, NR.userfaultfd))
    with pytest.raises(Refused, match="they forbid kcmp, userfaultfd, which a checkpoint calls"):
        tried()
    monkeypatch.setattr(seccomp_dry_run, "_is_killed", lambda nr: False)
    with pytest.raises(Refused, match="they forbid calls that it makes"):
        tried()


@pytest.mark.parametrize("nr", [NR.getpid, NR.kcmp, NR.exit, NR.exit_group, NR.rt_sigreturn, NR.poll, NR.read])
def test_no_call_kills_by_itself(nr: NR) -> None:
    """Without a filter, whatever the arguments do."""
    assert not seccomp_dry_run._is_killed(nr)


def test_without_filters_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp_dry_run, "_dry_run", lambda count: pytest.fail("it was tried"))
    monkeypatch.setattr(seccomp, "own", lambda: 0)
    seccomp_dry_run.dry_run(os.getpid())

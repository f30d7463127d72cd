"""The stage on which the conformance tests play, and the users they act for."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.harness import Actor, Stage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what failed here once more: deadlines pass on a machine that stands still for a while.

    Both results are printed ("rerun"), so one that fails now and then is seen; `make soak` gives no second try.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents and not any(item.iter_markers("soak")):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def user(ordinary: pwd.struct_passwd) -> Actor:
    """The ordinary user."""
    return Actor("user", ordinary.pw_uid, ordinary.pw_gid)


@pytest.fixture(scope="session")
def stage(user: Actor) -> Iterator[Stage]:
    """Folders, compiled programs and drivers of this session."""
    actors = [user] if os.geteuid() else [user, Actor("root", 0, 0)]
    stage = Stage(actors)
    yield stage
    stage.close()


ENOUGH = 4
"""Huge pages, of 2 MiB each."""


@pytest.fixture(scope="session", autouse=True)
def huge_pages() -> Iterator[None]:
    """A few pages of hugetlbfs, where the tests may set them aside."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    if os.geteuid() or not os.access(pool, os.W_OK):
        yield
        return
    before = int(pool.read_text())
    if before >= ENOUGH:
        yield
        return
    pool.write_text(str(ENOUGH))
    yield
    pool.write_text(str(before))


@pytest.fixture(scope="session", autouse=True)
def segments() -> Iterator[None]:
    """The System V segments that killed programs (c/system_v.c) leave in the host are removed in the end."""
    yield
    table = Path("/proc/sysvipc/shm")
    for line in table.read_text().splitlines()[1:] if table.exists() else ():
        key, number, *_, attached = line.split()[:7]
        if int(key) >> 24 == SEGMENT_KEYS and not int(attached):
            ctypes.CDLL(None).shmctl(int(number), 0, None)


SEGMENT_KEYS = 0x54
"""The first byte of their keys."""


@pytest.fixture
def root() -> Actor:
    """Root, where the tests run as root."""
    if os.geteuid():
        pytest.skip("only root can test what root does")
    return Actor("root", 0, 0)

"""The stage on which the conformance tests play, and the users they act for."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.harness import Actor, Stage


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

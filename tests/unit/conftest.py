"""What several files of tests need."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.unit.objects.fds.descriptor_tree import Acting, acting_as
from tests.users import User
from torpor.store import Store


@pytest.fixture
def acting(as_user: User) -> Acting:
    """Runs the test's body as root and as an ordinary user, with a directory of theirs."""
    return lambda body: acting_as(as_user, partial(body, as_user.tmp))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that is not there yet."""
    return Store(tmp_path / "store")


@pytest.fixture
def disk_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done from now on that a loss of power could undo: "file" and "directory" when synced, and "rename"."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def replaced(old: Path, new: Path) -> None:
        steps.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return steps

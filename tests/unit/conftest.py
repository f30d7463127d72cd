"""What several files of tests need."""

from __future__ import annotations

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

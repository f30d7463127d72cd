"""What an error of the system says to people."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from torpor import procfs
from torpor.errors import CheckpointFailed, failing
from torpor.remote import memory

OWN = f"/proc/{os.getpid()}/mem"
"""What nothing can be read from where nothing is mapped: at its beginning, too."""


@pytest.mark.parametrize(
    "read",
    [lambda: procfs.read(OWN), lambda: memory.read_quietly(os.getpid(), [(0, 8)], memoryview(bytearray(8)))],
)
def test_of_a_descriptor_it_says_which_file_it_was(read: Callable[[], object]) -> None:
    with pytest.raises(CheckpointFailed) as told, failing(CheckpointFailed, "it could not be saved"):
        read()
    assert str(told.value) == f"it could not be saved: {OWN}: Input/output error; try again"

"""What tests of the Slurm supervisor have in common."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.slurm.supervisor_rig import Rig
from torpor_slurm import supervisor


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.FORWARDED)
    try:
        yield Rig(tmp_path, monkeypatch)
    finally:
        while signal.sigtimedwait(supervisor.FORWARDED - {signal.SIGALRM}, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

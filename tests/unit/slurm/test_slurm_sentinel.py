"""The sentinel step, with an srun that is made up."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.slurm.slurm_job import environment
from torpor_slurm import sentinel
from torpor_slurm.allocation import Allocation
from torpor_slurm.sentinel import RESTART_SECONDS, Sentinel

PATIENCE = 100.0


def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, srun: str, trouble: Callable[[str], object] = print
) -> Sentinel:
    path = tmp_path / "srun"
    path.write_text(f"#!/bin/sh\n{srun}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    allocation = Allocation.here(environment())
    assert allocation is not None
    return Sentinel(allocation, trouble)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_that_a_signal_ended_is_soon_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "RESTART_SECONDS", 0.0)
    with made(tmp_path, monkeypatch, "echo; exec sleep 1000") as step:
        for _ in range(2):
            until(step.has_started)
            assert not step.has_started(), "that is news once"
            assert step._srun is not None
            step._srun.send_signal(signal.SIGTERM)
            until(step.ended)
            assert step.signal is None, "that was srun itself"
            assert not step.ended()  # it starts the next one


def test_the_signal_that_ended_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path, monkeypatch, f"echo; exit {128 + signal.SIGUSR1}") as step:
        until(step.ended)
        assert step.signal == signal.SIGUSR1


def test_one_that_ends_before_anybody_saw_it_listen_is_soon_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path, monkeypatch, "echo") as step:
        until(step.ended)
        assert step._start_at < time.monotonic() + 2 * RESTART_SECONDS


def test_one_that_cannot_start_never_listens_and_is_tried_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that is busy for a moment does not leave a job without a warning for a minute."""
    with made(tmp_path, monkeypatch, "exit 1") as step:
        assert step._srun is not None
        step._srun.wait()
        assert not step.has_started()
        assert step.ended()
        assert step._start_at > time.monotonic()
        assert [step._pause(started=False) for _ in range(7)] == [4, 8, 16, 32, 60, 60, 60]
        assert step._pause(started=True) == 1


def test_one_that_cannot_even_be_called_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be executed, or not now, is no reason for a supervisor to end."""
    monkeypatch.setattr(sentinel, "RETRY_SECONDS", 0.0)  # the most
    told: list[str] = []
    step = made(tmp_path, monkeypatch, "", told.append)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "srun").write_bytes(b"\x7fELF, but no program")
    with step:
        for _ in range(3):
            assert not step.ended()
            assert not step.has_started()
            assert not step.starting
        assert told == ["srun cannot be started: [Errno 8] Exec format error: 'srun'"]
        (tmp_path / "srun").write_text("#!/bin/sh\necho; exec /bin/sleep 1000\n")
        step.ended()
        until(step.has_started)

"""`torpor restore`: what it prints, and how it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from tests.unit.cli.conftest import Torpor

WARNING = "the clock of a timer \x1b[31m"
NOTE = "torpor: note: the clock of a timer \\x1b[31m\n"


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked of the engine, which wakes nothing."""
    seen: dict[str, Any] = {}

    def restore(snapshot: str, **options: Any) -> SimpleNamespace:
        seen.update(options, snapshot=snapshot)
        return SimpleNamespace(pid=7, warnings=(WARNING,), foreground=lambda: 3)

    monkeypatch.setattr(torpor, "restore", restore, raising=False)
    return seen


def test_in_the_foreground_it_ends_as_the_job(run: Torpor, woken: dict[str, Any]) -> None:
    assert run("restore", "latest") == (3, "", NOTE)
    assert (woken["foreground"], woken["detach"], woken["prove"]) == (True, False, None)
    assert woken["connected"] is torpor.Job.hold_signals


def test_detached_it_prints_one_pid(run: Torpor, woken: dict[str, Any]) -> None:
    assert run("restore", "latest", "--detach", "--prove", "--as", "capsule") == (0, "7\n", NOTE)
    assert (woken["foreground"], woken["connected"], woken["terminal"]) == (False, None, None)
    assert (woken["prove"], woken["way"]) == (True, "capsule")


def test_a_plan_is_printed_line_by_line(run: Torpor, woken: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.restorer.restore.explain", lambda *_, **__: "mmap\n  \x1b[2Jname")
    assert run("restore", "latest", "--explain") == (0, "mmap\n  \\x1b[2Jname\n", "")
    assert not woken, "nothing is done"

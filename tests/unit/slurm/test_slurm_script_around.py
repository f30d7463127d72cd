"""A script that would go on after `torpor run` is waited for when the job leaves."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import pytest

from tests.unit.slurm.slurm_job import environment
from torpor import processes
from torpor_slurm import controller, script_around
from torpor_slurm.allocation import Allocation
from torpor_slurm.script_around import ScriptAround


def around(in_step: bool = False) -> ScriptAround:
    allocation = Allocation.here(environment())
    assert allocation is not None
    return ScriptAround(replace(allocation, in_step=in_step))


def test_a_script_that_was_replaced_has_no_more_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_around, "_name", lambda _: "slurmstepd")
    around().wait_for_its_end()


def test_a_script_with_a_trap_is_let_go_on_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_around, "LONGEST", 0.0)
    around().wait_for_its_end()


@pytest.mark.parametrize("in_step", [False, True])
def test_slurms_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch, in_step: bool) -> None:
    if in_step:
        monkeypatch.setattr(script_around, "_name", lambda _: "slurmstepd")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # no other thread of the tests may take it
        around(in_step).wait_for_its_end()
        assert signal.SIGTERM not in signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_end_of_the_script_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = around()
    parents = [os.getppid(), 0]
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    waits.wait_for_its_end()
    assert parents == []


@pytest.mark.parametrize(
    ("dies", "grace", "in_step", "told"),
    [
        (True, 0, False, True),
        (True, 60, False, False),
        (False, 0, False, False),
        (True, 0, True, False),
        (True, None, False, False),
    ],
)
def test_a_script_that_ends_before_anybody_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, dies: bool, grace: int | None, in_step: bool, told: bool
) -> None:
    def notice(partition: str) -> controller.Notice:
        assert partition == "low"
        if grace is None:
            raise controller.SlurmError("Unable to contact slurm controller")
        return controller.Notice(grace, 30)

    monkeypatch.setattr(controller, "notice", notice)
    monkeypatch.setattr(processes, "dies_of", lambda pid, number: dies and (pid, number) == (os.getppid(), 15))
    warnings = around(in_step).warnings("low")
    assert [told] * len(warnings) == [True] * told
    assert all("trap exit TERM" in words for words in warnings)

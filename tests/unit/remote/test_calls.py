"""The calls that are made in a frozen process."""

from __future__ import annotations

from torpor.arch.x86_64 import NR
from torpor.remote import calls


def test_what_must_not_fail_is_among_what_is_made() -> None:
    assert calls.VITAL <= calls.MADE


def test_nothing_is_called_that_would_harm_a_frozen_process() -> None:
    """Of what would replace it, or take from it what it has, only what a helper's end takes."""
    harmful = {NR.execve, NR.close, NR.dup2, NR.fork, NR.chdir, NR.kill, NR.setsockopt, NR.connect, NR.bind}
    assert not harmful & calls.MADE

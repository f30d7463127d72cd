"""What a program started from here gets, less what Python and Torpor changed in this process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from torpor.util import inherited


def _told(words: str, *options: str, env: dict[str, str] | None = None, shell: str = "") -> str:
    command = [sys.executable, *options, "-c", f"from torpor.util import inherited; print({words})"]
    if shell:
        command = ["bash", "-c", f'{shell}; "$@"; true', "bash", *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_what_python_ignores_is_not_handed_on() -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    assert not inherited.ignored() & {signal.SIGPIPE, signal.SIGXFSZ}


@pytest.mark.parametrize("names", ["HUP USR1", "PIPE", "PIPE XFSZ INT"])
def test_what_a_shell_ignores_is_handed_on(names: str) -> None:
    words = "*sorted(map(int, inherited.ignored()))"
    without = set(_told(words, shell="true").split())  # a real-time signal that whoever runs the tests ignores
    told = set(_told(words, shell=f"trap '' {names}").split())
    assert told - without == {str(int(signal.Signals[f"SIG{name}"])) for name in names.split()}


@pytest.mark.parametrize("noted", ["", "13", "13,25"])
def test_what_was_noted_before_python_started_is_handed_on(noted: str) -> None:
    """Whatever the parent ignores."""
    words = "*sorted(inherited.ignored() & {13, 25}), sep=','"
    assert _told(words, f"-Xtorpor-ignored={noted}", shell="trap '' PIPE") == noted


@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_the_environment_is_what_the_caller_gave(given: dict[str, str]) -> None:
    env = {"PATH": os.environ["PATH"], **given}
    assert _told("inherited.environment()", env=env) == str(env)


def test_a_program_gets_the_limits_that_were_not_raised() -> None:
    before = {number: resource.getrlimit(number) for number in inherited._RAISED}
    hard = {number: (limit[1], limit[1]) for number, limit in before.items()}
    lower = {number: (256 if limit[0] < 0 else min(limit[0], 256), limit[1]) for number, limit in before.items()}

    def now() -> dict[int, tuple[int, int]]:
        return {number: resource.getrlimit(number) for number in inherited._RAISED}

    def given() -> dict[int, tuple[int, int]]:
        return {number: (soft, before[number][1]) for number, soft in inherited.soft_limits().items()}

    for number, limit in lower.items():
        resource.setrlimit(number, limit)
    try:
        with inherited.raised_limits():
            with inherited.raised_limits():
                assert (now(), given()) == (hard, lower)
            assert now() == hard
        assert now() == given() == lower
    finally:
        for number, limit in before.items():
            resource.setrlimit(number, limit)


def test_the_limit_is_read_and_changed_as_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread that comes as another one leaves would take the raised limit for the one to go back to."""
    getrlimit = resource.getrlimit
    locked: list[bool] = []

    def read(which: int) -> tuple[int, int]:
        locked.append(inherited._raising.locked())
        return getrlimit(which)

    monkeypatch.setattr(resource, "getrlimit", read)
    with inherited.raised_limits():
        pass
    assert set(locked) == {True}

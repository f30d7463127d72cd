"""What a program started from here gets, less what Python and Torpor changed in this process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from torpor.util import inherited


def _told(words: str, *, env: dict[str, str] | None = None, shell: str = "") -> str:
    command = [sys.executable, "-c", f"from torpor.util import inherited; print({words})"]
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


@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_the_environment_is_what_the_caller_gave(given: dict[str, str]) -> None:
    env = {"PATH": os.environ["PATH"], **given}
    assert _told("inherited.environment()", env=env) == str(env)


def test_the_limit_of_descriptors_is_not_the_raised_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = (min(before[0], 256), before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, lower)
    try:
        with inherited.raised_descriptor_limit():
            with inherited.raised_descriptor_limit():
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
                assert inherited.descriptor_limit() == lower[0]
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == lower
        assert inherited.descriptor_limit() == lower[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_read_and_changed_as_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread that comes as another one leaves would take the raised limit for the one to go back to."""
    getrlimit = resource.getrlimit
    locked: list[bool] = []

    def read(which: int) -> tuple[int, int]:
        locked.append(inherited._raising.locked())
        return getrlimit(which)

    monkeypatch.setattr(resource, "getrlimit", read)
    with inherited.raised_descriptor_limit():
        pass
    assert locked == [True]

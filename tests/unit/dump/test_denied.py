"""Why a checkpoint was not permitted: this host's reason, if it has one, else the error as it was."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable

import pytest

from torpor.dump import denied
from torpor.errors import CheckpointFailed, NotFound, NotPermitted, TorporError
from torpor.probe import probe


def failed(cause: OSError | None, kind: type[TorporError] = CheckpointFailed) -> TorporError:
    """An error, and what caused it."""
    error = kind("it failed")
    error.__cause__ = cause
    return error


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def raised(error: TorporError) -> TorporError:
    with pytest.raises(TorporError) as found, denied.explained("process 7 cannot be saved"):
        raise error
    return found.value


@pytest.fixture
def withholding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that forbids a call."""
    host = dataclasses.replace(
        probe(), process_vm=False, why={**probe().why, "process_vm": "process_vm_readv: not permitted"}
    )
    assert host.cannot_freeze
    monkeypatch.setattr(denied, "probe", lambda: host)


@pytest.mark.usefixtures("withholding")
@pytest.mark.parametrize(
    "error",
    [
        lambda: failed(None, NotPermitted),
        lambda: failed(of(errno.EPERM)),
        lambda: failed(of(errno.EACCES)),
        lambda: failed(of(errno.ENOSYS)),
    ],
)
def test_a_host_that_withholds_a_call_is_the_reason(error: Callable[[], TorporError]) -> None:
    found = raised(error())
    assert isinstance(found, NotPermitted)
    assert found.message.startswith("process 7 cannot be saved: this host does not let Torpor freeze anything: ")
    assert "process_vm_readv" in found.message and found.advice == "see `torpor doctor`"


@pytest.mark.usefixtures("withholding")
@pytest.mark.parametrize(
    "error", [lambda: failed(of(errno.ENOSPC)), lambda: failed(None), lambda: failed(None, NotFound)]
)
def test_another_failure_is_not_the_hosts(error: Callable[[], TorporError]) -> None:
    mine = error()
    assert raised(mine) is mine


def test_a_host_that_permits_all_is_no_reason() -> None:
    if probe().cannot_freeze:
        pytest.skip("this host does not let Torpor freeze anything")
    mine = failed(of(errno.EPERM))
    assert raised(mine) is mine


def test_a_proc_with_processes_only_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = failed(of(errno.ENOENT))
    assert raised(mine) is mine, "a file is missing, and /proc is whole"
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/sys")
    found = raised(failed(of(errno.ENOENT)))
    assert found.message == "process 7 cannot be saved: this /proc shows processes only (subset=pid)"
    assert "ProcSubset=all" in str(found.advice)

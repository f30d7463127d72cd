"""Kill a frozen tree whose snapshot is published."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, MutableMapping

from torpor.errors import CheckpointFailed, in_words
from torpor.remote import ptrace
from torpor.remote.freeze import Process
from torpor.remote.naming import UNINTERRUPTIBLE

SECONDS = 30.0
"""How long killed processes may take to end."""


def check(processes: Mapping[int, Process]) -> None:
    """Check that a frozen tree can be killed as a whole.

    Raises:
        CheckpointFailed: a process cannot be killed.
    """
    for process in processes.values():
        try:
            os.kill(process.pid, 0)
        except OSError as error:
            raise CheckpointFailed(f"{process.name} cannot be killed: {in_words(error)}") from error


def kill(processes: MutableMapping[int, Process]) -> list[str]:
    """Kill a frozen tree, children first, and wait until each process has ended.

    Args:
        processes: those of a `Frozen`; empty afterwards.

    Returns:
        Messages for the user about processes that were not killed, or have not ended. All others are killed anyway.
    """
    doomed = list(processes.values())[::-1]
    processes.clear()
    wrong: dict[int, str] = {}
    for process in doomed:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except OSError as error:
            wrong[process.pid] = f"{process.name} was not killed: {in_words(error)}"
    deadline = time.monotonic() + SECONDS
    for process in (one for one in doomed if one.pid not in wrong):
        try:
            for tid in reversed(process.threads):  # a leader's exit is reported after its threads'
                _wait_for_end(tid, deadline)
        except TimeoutError:  # its exit closes its files, which may wait for a file server
            wrong[process.pid] = f"{process.name} was killed, and has not ended yet: {UNINTERRUPTIBLE}"
    return list(wrong.values())


def _wait_for_end(tid: int, deadline: float) -> None:
    while True:
        try:
            status = ptrace.wait(tid, deadline)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            return

"""When a checkpoint that was refused is tried again: as long as the reasons may pass by themselves.

Such a reason is that bytes are under way which a process of the tree reads in a moment. On a busy host a moment is
long: the reader may be runnable and not get a processor. So while a thread of the tree has to wait for one, there are
more tries than otherwise. The tree runs between them, and each freezes it no longer than the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from torpor import procfs
from torpor.errors import Refused
from torpor.objects.process import tree

T = TypeVar("T")

PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Seconds that the tree runs before each new try."""
LONG_PAUSES = (0.64, 1.28, 2.56, 5.12)
"""More pauses, ten seconds in all. Each is added only if a thread of the tree lacked a processor in the one before."""
_HALF = 0.5
"""A runnable thread that gets less than this part of the time lacks a processor."""


def patiently(root: int, act: Callable[[], T]) -> T:
    """Try again while all reasons for a refusal may pass by themselves.

    Args:
        root: the PID of the tree's root.
        act: the checkpoint.

    Raises:
        Refused: as `act` does, at once if a reason does not pass, else when its time is over.
    """
    lacking = True
    for number, pause in enumerate((*PAUSES, *LONG_PAUSES), 1):
        try:
            return act()
        except Refused as refused:
            if not all(reason.passing for reason in refused.reasons) or (pause in LONG_PAUSES and not lacking):
                raise
        if number < len(PAUSES):
            time.sleep(pause)  # the next try comes in any case
        else:
            lacking = run_on(root, pause)
    return act()


def run_on(root: int, seconds: float) -> bool:
    """Let a tree run on for a time.

    Returns:
        Whether one of its threads is runnable at the end and got little of a processor meanwhile.
    """
    before = {tid: got for tid, (_, got) in _threads(root).items()}
    time.sleep(seconds)
    enough = seconds * _HALF
    return any(
        state == "R" and tid in before and got - before[tid] < enough for tid, (state, got) in _threads(root).items()
    )


def _threads(root: int) -> dict[int, tuple[str, float]]:
    """The state of each thread of a tree, and the seconds for which it had a processor."""
    found = {}
    for pid, tid in tree.tasks(root):
        try:
            stat = procfs.parse_stat(procfs.read(f"/proc/{pid}/task/{tid}/stat"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        found[tid] = stat.state, stat.cpu_ticks / os.sysconf("SC_CLK_TCK")
    return found

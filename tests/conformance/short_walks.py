"""Walks to the PIDs of a tree that take no time: root may say where the kernel counts on from, and how far."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torpor.remote import pid_allocation

LOW, SHORT_WALK = 3000, 1500
"""The first PID of a tree, and those that go by on the way to it."""


def count_from(pid: int) -> None:
    """Let the kernel count PIDs on from one, as root may: a walk to those of a tree is short then."""
    if not os.geteuid():
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(max(pid, 300)))


@contextmanager
def short_rounds() -> Iterator[None]:
    """What must wait for the next round of PIDs has it within seconds, as root may have it: they end early, in this
    namespace where it has its own (pid_max, since Linux 6.14)."""
    if os.geteuid():
        yield
        return
    end = Path("/proc/sys/kernel/pid_max")
    before = end.read_text()
    most = min(int(before), 32768)
    end.write_text(str(most))
    try:
        if not LOW <= pid_allocation.last() < most:
            count_from(LOW)  # PIDs below come never again, or soon
        yield
    finally:
        end.write_text(before)

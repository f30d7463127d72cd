"""Jobs: how they end, what is passed on to them, and what is left of them."""

from __future__ import annotations

import os
import select
import signal
import sys

import pytest

from tests.conformance.harness import PATIENCE, wait_until
from tests.leaks import descendants, no_more_descriptors
from torpor.restorer.run import start


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM)])
def test_it_ends_as_its_root_does(command: str, code: int) -> None:
    with no_more_descriptors():
        job = start(["sh", "-c", command])
        assert job.wait() == code
        assert job.wait() == job.poll() == code


def test_a_signal_reaches_the_root() -> None:
    job = start(["sleep", "1000"])
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        job.send_signal(signal.SIGTERM)


def test_sigkill_leaves_nobody() -> None:
    job = start(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
    wait_until(lambda: len(descendants(job.pid)) == 3, "the shell and its children")
    below = [os.pidfd_open(pid) for pid in descendants(job.pid)]
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    for pidfd in below:
        assert select.select([pidfd], [], [], PATIENCE)[0]  # it has ended
        os.close(pidfd)


def test_orphans_fall_to_its_init() -> None:
    """The root waits until its child has a new parent, and tells by its end whether that is its own parent."""
    program = """
import os
told, telling = os.pipe()
if not os.fork():
    middle = os.getpid()
    if not os.fork():
        while os.getppid() == middle:
            os.sched_yield()
        os.write(telling, b"%d" % os.getppid())
    os._exit(0)
os.wait()
os._exit(int(os.read(told, 16)) != os.getppid())
"""
    assert start([sys.executable, "-c", program]).wait() == 0

"""Signals by the kernel's own calls: those that libc hides, and the values of queued ones."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from torpor.remote import kernel_signals

kernel_signals.block(kernel_signals.EVERY)
for number in kernel_signals.EVERY:
    os.kill(os.getpid(), number)
    received = kernel_signals.wait([number])
    assert (received.number, received.by_process, received.sender) == (number, True, os.getpid()), number
assert kernel_signals.wait([32], 0.001) is None
for number in signal.SIGUSR1, 33:
    assert kernel_signals.queue(os.getpid(), number, 42)
    received = kernel_signals.wait([number])
    received.pass_on(os.getpid())
    assert kernel_signals.wait([number]).info[24:28] == (42).to_bytes(4, "little")
assert not kernel_signals.queue(1 << 30, number, 0)
signal.setitimer(signal.ITIMER_REAL, 0.001)
assert not kernel_signals.wait([signal.SIGALRM]).by_process
kernel_signals.set_default(33)
os.kill(os.getpid(), 33)
kernel_signals.unblock([33])
"""


def test_every_signal_can_be_held_and_taken() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert done.returncode == -33, done.stderr

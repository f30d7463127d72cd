"""A nanny hands the warning of a preemption on, and survives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

from torpor_dask.nanny import ForwardWarning

WORKER = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
sys.exit(signal.sigwait({signal.SIGUSR1}))
"""


def nanny(pid: int | None) -> Any:
    return SimpleNamespace(pid=pid)


def test_the_worker_gets_the_warning_and_the_nanny_has_its_handler_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with subprocess.Popen([sys.executable, "-Sc", WORKER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as worker:
        assert worker.stdout and worker.stdout.readline() == b"ready\n"
        plugin, its = ForwardWarning(signal.SIGUSR1), nanny(worker.pid)
        plugin.setup(its)
        signal.raise_signal(signal.SIGUSR1)
        assert worker.wait(60) == signal.SIGUSR1
        signal.raise_signal(signal.SIGUSR1)  # the worker is gone
        its.pid = None  # there is none yet
        signal.raise_signal(signal.SIGUSR1)
        plugin.teardown(its)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_signals_of_a_program_around_the_nanny_are_its_own() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    plugin = ForwardWarning(signal.SIGUSR1)
    thread = threading.Thread(target=plugin.setup, args=[nanny(os.getpid())])
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
    plugin.teardown(nanny(None))
    assert signal.getsignal(signal.SIGUSR1) is before

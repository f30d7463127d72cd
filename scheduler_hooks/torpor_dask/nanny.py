"""On every nanny: the warning of a preemption goes on to the worker; the nanny itself would die of the signal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from distributed import Nanny, NannyPlugin

from torpor_dask.worker import NAME


class PassOn(NannyPlugin):
    """Passes a signal on to the worker."""

    idempotent = True
    name = NAME

    def __init__(self, warning: int) -> None:
        """Name the signal by its number."""
        self.warning = warning
        self._before: Any = None

    def setup(self, nanny: Nanny) -> None:
        """Begin, unless the nanny lives in a program that is not its own, where signals are not ours."""
        if threading.current_thread() is not threading.main_thread():
            return

        def pass_on(signum: int, frame: object) -> None:
            if nanny.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(nanny.pid, signum)

        self._before = signal.signal(self.warning, pass_on)

    def teardown(self, nanny: Nanny) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(self.warning, self._before)

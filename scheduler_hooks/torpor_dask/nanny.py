"""On every nanny: pass the warning of a preemption on to the worker. Unhandled, the signal would end the nanny."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from distributed import Nanny, NannyPlugin

from torpor_dask.worker import NAME


class ForwardWarning(NannyPlugin):
    """Passes a signal on to the worker."""

    idempotent = True
    name = NAME

    def __init__(self, warning: int) -> None:
        """Take the number of the signal."""
        self.warning = warning
        self._before: Any = None

    def setup(self, nanny: Nanny) -> None:
        """Handle the signal, unless the nanny runs in another program (LocalCluster), whose signals are its own."""
        if threading.current_thread() is not threading.main_thread():
            return

        def forward(signum: int, frame: object) -> None:
            if nanny.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(nanny.pid, signum)

        self._before = signal.signal(self.warning, forward)

    def teardown(self, nanny: Nanny) -> None:
        """Restore the handler that was there before."""
        if self._before is not None:
            signal.signal(self.warning, self._before)

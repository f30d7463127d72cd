"""A worker that dies when a result is stored, before it can tell anybody: preloaded by Dask, while a file exists."""

from __future__ import annotations

import os
import signal
from typing import Any

from torpor_dask import worker

DEADLY = "TORPOR_TEST_DEADLY"
"""The variable that names the file."""


def dask_setup(server: object) -> None:
    write = vars(worker)["write"]

    def write_and_die(*args: Any) -> Any:
        info = write(*args)
        if os.path.exists(os.environ[DEADLY]):
            os.kill(os.getpid(), signal.SIGKILL)
        return info

    vars(worker).update(write=write_and_die)

"""A store that does not answer: preloaded by Dask, it holds every fsync and every read up while a file exists."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

GATE = "TORPOR_TEST_GATE"
"""The variable that names the file."""


def _held_up(function: Callable[..., Any]) -> Callable[..., Any]:
    def wait(*args: Any, **kwargs: Any) -> Any:
        while os.path.exists(os.environ[GATE]):
            time.sleep(0.01)
        return function(*args, **kwargs)

    return wait


def dask_setup(server: object) -> None:
    os.fsync = _held_up(os.fsync)
    os.preadv = _held_up(os.preadv)

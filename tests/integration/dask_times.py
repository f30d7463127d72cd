"""Times that Torpor keeps on Dask's scheduler, as a test wants them: preloaded by Dask."""

from __future__ import annotations

import os

from torpor_dask import scheduler

TAIL, SWEEP = "TORPOR_TEST_TAIL", "TORPOR_TEST_SWEEP"
"""The variables with them, in seconds."""


def dask_setup(server: object) -> None:
    vars(scheduler).update(TAIL=float(os.environ[TAIL]), SWEEP=float(os.environ[SWEEP]))

"""Dask: a lost worker, node or cluster costs no finished task.

    client.register_plugin(torpor.scheduler_hooks.dask.Resume(store="/shared/torpor"))

or this module as a preload of the scheduler (``distributed.scheduler.preload``, ``--preload``, an environment
variable), with the settings in Dask's configuration, block ``torpor:``. docs/dask.md says the rest.
"""

from __future__ import annotations

from distributed import Scheduler, Worker

from torpor.scheduler_hooks.dask.scheduler import Resume
from torpor.scheduler_hooks.dask.settings import Settings

__all__ = ["Resume", "Settings", "dask_setup"]


def dask_setup(server: Scheduler | Worker) -> None:
    """Do what Dask asks of a preload: on a scheduler, add Resume, which brings workers and nannies their part.

    On a worker there is nothing to do: preloading there is harmless and imports early what will be needed.
    """
    if isinstance(server, Scheduler):
        server.add_plugin(Resume(), idempotent=True, name=Resume.name)  # the scheduler starts it when it starts itself

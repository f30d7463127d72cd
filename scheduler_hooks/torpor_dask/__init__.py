"""Dask: a lost worker, node or cluster costs no finished task.

    client.register_plugin(torpor_dask.Resume(store="/shared/torpor"))

or this module as a preload of the scheduler or of the workers (``distributed.scheduler.preload``, ``--preload``, an
environment variable), with the settings in Dask's configuration, block ``torpor:``. See docs/dask.md.
"""

from __future__ import annotations

import asyncio
import logging

from distributed import Nanny, Scheduler, Worker
from distributed.protocol.pickle import dumps

from torpor_dask.scheduler import Resume
from torpor_dask.settings import Settings

__all__ = ["Resume", "Settings", "dask_setup"]

logger = logging.getLogger("torpor.dask")
_bringing: set[asyncio.Task[None]] = set()


async def dask_setup(server: Scheduler | Worker | Nanny) -> None:
    """Called by Dask for a preload: add Resume to the scheduler, which sends workers and nannies their plugins.

    A worker sends Resume to its scheduler: with dask-jobqueue the scheduler has the configuration of the program that
    created the cluster, and ``worker_extra_args`` reach the workers only.
    """
    if isinstance(server, Scheduler):
        server.add_plugin(Resume(), idempotent=True, name=Resume.name)  # the scheduler starts it when it starts itself
    elif isinstance(server, Worker):
        # Not before this worker has started: the scheduler gives nannies their part when all of them have, and a nanny
        # waits for its worker.
        task = asyncio.ensure_future(_bring(Resume(), server))
        _bringing.add(task)
        task.add_done_callback(_bringing.discard)


async def _bring(plugin: Resume, worker: Worker) -> None:
    try:
        await worker.start()  # begun by Dask: this waits for its end
        await worker.scheduler.register_scheduler_plugin(plugin=dumps(plugin), name=Resume.name, idempotent=True)
    except Exception:  # Dask has told of its own failure to start; a scheduler may refuse plugins
        logger.exception("Torpor is not in use: the worker cannot register it at its scheduler")

"""A server in a Slurm job: when the job is preempted, its kernels are parked while there is time.

Slurm tells the start of a grace time to steps alone: a step beside the server hears it. The server itself goes on, with
its kernels parked, until Slurm ends the batch script: one that ended by itself would end the job, and Slurm before
24.05 would not requeue it. What Slurm sends to the server itself, at the end of the grace time or by
``--signal=B:TERM@120``, is SIGTERM, at which every server parks its kernels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from logging import Logger

from torpor.scheduler_hooks.slurm import controller
from torpor.scheduler_hooks.slurm.allocation import Allocation
from torpor.scheduler_hooks.slurm.controller import SlurmError
from torpor.scheduler_hooks.slurm.sentinel import Sentinel
from torpor.scheduler_hooks.slurm.why import Cause, why

PULSE = 1.0
"""How often the step is looked at, seconds."""


async def watch(allocation: Allocation, preempted: Callable[[], Awaitable[None]], log: Logger) -> None:
    """Call `preempted` whenever the job is told to leave for another one. Ends when it is cancelled."""
    with Sentinel(allocation) as sentinel:
        while True:
            await asyncio.sleep(PULSE)
            # What came before anybody listened, nobody has heard.
            if (begins := sentinel.listens()) or sentinel.ended():
                cause = await asyncio.get_running_loop().run_in_executor(None, _cause, allocation, log)
                if cause in (Cause.PREEMPTED, Cause.REQUEUED) or (cause is None and not begins):
                    log.warning("Slurm takes the node of job %s back: its kernels are parked", allocation.job)
                    await preempted()


def _cause(allocation: Allocation, log: Logger) -> Cause | None:
    """Why the step was told to go; None when the controller does not answer."""
    try:
        record = controller.job_record(allocation.job)
    except SlurmError as error:
        log.warning("Slurm does not say what becomes of job %s: %s", allocation.job, error)
        return None
    return why(record, restarts=allocation.restarts, now=time.time(), lead=0, terminated=False).cause

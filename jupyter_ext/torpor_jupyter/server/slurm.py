"""A server in a Slurm job: when the job is preempted, park the kernels during the grace time.

Slurm tells the start of a grace time to steps alone: a step beside the server hears it. The server itself goes on, with
its kernels parked, until Slurm ends the batch script: one that ended by itself would end the job, and Slurm before
24.05 would not requeue it. What Slurm sends to the server itself, at the end of the grace time or by
``--signal=B:TERM@120``, is SIGTERM, at which every server parks its kernels.

If a script waits for the server, without exec, the script gets that SIGTERM and the server does not. Then the step
tells the server also that the job is cancelled or at its time limit, and the server ends as at SIGTERM.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from logging import Logger

from torpor.errors import TorporError
from torpor_slurm import controller
from torpor_slurm.allocation import Allocation
from torpor_slurm.preemption_cause import Cause, find_cause
from torpor_slurm.script_around import ScriptAround
from torpor_slurm.sentinel import Sentinel

POLL_SECONDS = 1.0
"""Seconds between two checks of the step."""


async def watch(
    allocation: Allocation, preempted: Callable[[], Awaitable[None]], ends: Callable[[], object], log: Logger
) -> None:
    """Call `preempted` whenever another job preempts this one, `ends` when Slurm ends it. Runs until it is cancelled.

    If Slurm's programs are missing, as in a container, or do not answer, this is only logged: at the end of the job
    the server still gets SIGTERM.
    """
    if ScriptAround(allocation).ends_at_once:
        log.warning(
            "The script of job %s waits for this server: if Slurm ends the job, the script ends at once, and no kernel"
            " is parked. Begin the script's last line with `exec`, or the script with `trap exit TERM`",
            allocation.job,
        )
    with Sentinel(
        allocation, partial(log.warning, "Cannot listen for a preemption of job %s: %s", allocation.job)
    ) as sentinel:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            # A new step may have missed a warning that came before it started.
            if not (sentinel.has_started() or sentinel.ended()):
                continue
            cause = await _cause(allocation, log)
            if cause in (Cause.PREEMPTED, Cause.REQUEUED):
                log.warning("Slurm preempts job %s: its kernels are parked now", allocation.job)
                await preempted()
            elif cause in (Cause.CANCELLED, Cause.TIME_LIMIT):
                log.warning("Slurm ends job %s (%s)", allocation.job, cause.value)
                ends()


async def _cause(allocation: Allocation, log: Logger) -> Cause | None:
    """Why Slurm has signalled the job; None if it does not answer."""
    ask = partial(controller.job_record, allocation.job)
    try:
        record = await asyncio.get_running_loop().run_in_executor(None, ask)
    except TorporError as error:
        log.warning("Cannot ask Slurm whether job %s is being preempted: %s", allocation.job, error)
        return None
    return find_cause(record, restarts=allocation.restarts, now=time.time(), lead=0, warned=False).cause

"""A Jupyter server in a Slurm job, where there is nothing of Slurm."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from torpor_jupyter.server import slurm
from torpor_slurm.allocation import Allocation


async def _park() -> None:
    raise AssertionError("nothing was preempted")


def _end() -> None:
    raise AssertionError("nothing was cancelled")


def test_slurms_programs_are_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As in a container: it is told, and the server goes on."""
    monkeypatch.setenv("PATH", "/nowhere")
    job = Allocation.around({"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "ENVIRONMENT": "BATCH"})
    assert job

    async def watched() -> None:
        watching = asyncio.create_task(slurm.watch(job, _park, _end, logging.getLogger("server")))
        while "Cannot listen" not in caplog.text:
            assert not watching.done()
            await asyncio.sleep(0.01)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    asyncio.run(watched())
    assert "Cannot listen for a preemption of job 7" in caplog.text
    assert "srun" in caplog.text

"""What happens without a person."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.server import memory_pressure
from torpor_jupyter.server.policies import Policies, Policy


def test_a_kernel_that_is_parked_for_its_memory_when_the_server_stops_is_parked(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, run_step = server.service, server.service.workers.run
    monkeypatch.setattr(memory_pressure, "available", lambda: 0.0)

    async def stops() -> None:
        kernel = await server.sleeping(process)
        service.registry.kernel_manager(kernel).execution_state = "idle"
        policies = Policies(service, asyncio.get_running_loop(), Policy(0, 0, 0), quota=0, park_below=50)
        begun = asyncio.Event()

        async def watched(*step: Any) -> Any:
            begun.set()
            return await run_step(*step)

        monkeypatch.setattr(service.workers, "run", watched)
        policies._begin(policies._free_memory())
        await begun.wait()
        policies.stop()
        await service.park_all("stopping")
        assert service.registry.describe(kernel)["state"] == "parked"
        assert [one["reason"] for one in await service.checkpoints.list(kernel)] == ["memory"]
        await server.end()

    asyncio.run(stops())


def test_the_server_stops_when_the_last_clean_up_has_ended(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was left when the event loop stopped kept the process from ending, for good."""
    service = server.service

    async def stops() -> None:
        kernel = await server.sleeping(process)
        service.registry.kernel_manager(kernel).execution_state = "idle"
        policies = Policies(service, asyncio.get_running_loop(), Policy(0, 0, 0), quota=0, park_below=0)
        steps: list[str] = []

        async def clean_up(of: str) -> None:
            steps.append("begun")
            await asyncio.sleep(0.1)
            steps.append("ended")

        monkeypatch.setattr(policies, "_free_disk", clean_up)
        policies.stop()
        await service.park_all("stopping")
        await policies.ended()
        assert steps == ["begun", "ended"]
        await server.end()

    asyncio.run(stops())

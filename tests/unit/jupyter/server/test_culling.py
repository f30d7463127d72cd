"""What Jupyter would cull is parked; what a person shuts down is shut down."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import datetime, timezone

import pytest

from tests.unit.jupyter.conftest import Server
from torpor.errors import NotPermitted
from torpor_jupyter.server.culling import park_when_culling

LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def culling(server: Server) -> Server:
    """A server that culls kernels which are idle for a second."""
    server.manager.cull_idle_timeout = 1
    park_when_culling(server.manager, server.service)
    return server


def test_an_idle_kernel_is_parked_and_stays_so(
    culling: Server, process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    manager, registry = culling.manager, culling.service.registry

    async def culled() -> None:
        kernel = await culling.sleeping(process)
        registry.kernel_manager(kernel).last_activity = LONG_AGO
        await manager.cull_kernel_if_idle(kernel)
        assert registry.describe(kernel)["state"] == "parked" and process.poll() is not None
        (made,) = await culling.service.checkpoints.list(kernel)
        assert made["reason"] == "idle"
        await manager.cull_kernel_if_idle(kernel)
        assert kernel in manager, "a parked kernel is no idle one"
        await manager.shutdown_kernel(kernel, now=True)
        assert kernel not in manager, "who shuts it down himself is heard"

    asyncio.run(culled())
    assert "cannot be parked" not in caplog.text, "nobody tried to park it again"


def test_a_kernel_at_work_is_left_alone(culling: Server, process: subprocess.Popen[bytes]) -> None:
    async def culled() -> None:
        kernel = await culling.sleeping(process)
        manager = culling.service.registry.kernel_manager(kernel)
        manager.last_activity = LONG_AGO
        manager.execution_state = "busy"
        await culling.manager.cull_kernel_if_idle(kernel)
        assert culling.service.registry.describe(kernel)["state"] == "living"
        await culling.end()

    asyncio.run(culled())


def test_what_cannot_be_parked_lives_on(
    culling: Server,
    process: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuses(kernel: str, **_: object) -> None:
        raise NotPermitted("the store is read-only")

    monkeypatch.setattr(culling.service, "park", refuses)

    async def culled() -> None:
        kernel = await culling.sleeping(process)
        culling.service.registry.kernel_manager(kernel).last_activity = LONG_AGO
        await culling.manager.cull_kernel_if_idle(kernel)
        assert process.poll() is None and kernel in culling.manager
        await culling.end()

    asyncio.run(culled())
    assert "is idle, and cannot be parked: the store is read-only" in caplog.text

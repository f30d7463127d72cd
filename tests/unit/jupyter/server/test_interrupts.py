"""An interrupt of a parked kernel gives up the cells that wait, and is told; one of a living kernel is Jupyter's."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.server.interrupts import interrupt_parked


class Browser:
    """Writes down what it is told."""

    has_gone = False
    aborted: list[str]

    def __init__(self) -> None:
        self.aborted = []

    def abort_cell(self, message: str) -> bool:
        if cell := message.startswith("cell"):
            self.aborted.append(message)
        return cell


def test_what_waits_for_a_parked_kernel_is_given_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    interrupted: list[str] = []
    manager: Any = server.manager
    manager.interrupt_kernel = interrupted.append
    interrupt_parked(manager, server.service)

    async def told() -> None:
        kernel = await server.sleeping(process)
        browser: Any = Browser()
        await manager.interrupt_kernel(kernel)
        assert interrupted == [kernel] and "interrupted" not in server.events
        await server.service.park(kernel)
        gate = server.service.registry.gate(kernel)
        gate.waiting += [(browser, "cell one"), (browser, "info"), (browser, "cell two")]
        await manager.interrupt_kernel(kernel)
        assert browser.aborted == ["cell one", "cell two"] and gate.waiting == [(browser, "info")]
        assert interrupted == [kernel] and server.events[-1] == "interrupted"
        gate.waiting.clear()
        await server.end()

    asyncio.run(told())

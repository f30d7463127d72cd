"""This server's own connections to a kernel: which there are, and that they let themselves be heard by a woken one."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.data.records import CheckpointRecord
from torpor_jupyter.kernels import connections
from torpor_jupyter.kernels.quiescing import PORTS


class Browser:
    """Writes down what it is told."""

    has_gone = False

    def __init__(self) -> None:
        self.replies: list[tuple[str, Any]] = []

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        self.replies.append((header["msg_id"], content))


def test_each_socket_to_a_kernel_is_counted_by_its_port(server: Server, process: subprocess.Popen[bytes]) -> None:
    async def counted() -> None:
        kernel = await server.sleeping(process)
        manager = server.service.registry.kernel_manager(kernel)
        ports = {name: getattr(manager, name) for name in PORTS}
        before = server.service.connections.counts(kernel)
        streams = {name: manager.connect_shell() for name in ("shell", "stdin", "iopub")}
        server.manager._kernel_buffers[kernel] = {"channels": streams, "session_key": "", "buffer": []}
        after = server.service.connections.counts(kernel)
        assert after - before == {ports["shell_port"]: 1, ports["stdin_port"]: 1, ports["iopub_port"]: 1}
        assert set(before) <= {ports["control_port"], ports["iopub_port"]}, "those by which the server watches it"
        for stream in server.manager._kernel_buffers.pop(kernel)["channels"].values():
            stream.close(linger=0)
        await server.end()

    asyncio.run(counted())


def test_a_kernel_that_moved_is_watched_at_its_new_ports(server: Server, process: subprocess.Popen[bytes]) -> None:
    async def moved() -> None:
        kernel = await server.sleeping(process)
        registry, there = server.service.registry, server.connection()
        server.service.connections.move(kernel, registry.suitable(kernel), there)
        manager = registry.kernel_manager(kernel)
        assert {name: getattr(manager, name) for name in PORTS} == {name: there[name] for name in PORTS}
        assert manager.get_connection_info()["key"] == b"secret"
        assert set(server.manager._kernel_ports[kernel]) == {there[name] for name in PORTS}
        await server.end()

    asyncio.run(moved())


@pytest.mark.parametrize("late", [False, True])
def test_a_reply_that_does_not_come_is_made_good(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The kernel dropped it, since it had not seen that the connection was dead."""
    monkeypatch.setattr(connections, "LATE_SECONDS", 0.0)

    async def woken() -> None:
        kernel = await server.sleeping(process)
        here, gate, browser = server.service.connections, server.service.registry.gate(kernel), Browser()
        named: list[str] = []

        async def renamed(id: str) -> None:
            named.append(id)

        monkeypatch.setattr(here, "_rename_clients", renamed)
        record = CheckpointRecord("20260101-000000000-aaaaaa", kernel, "python3", {}, "/", outstanding=["one"])
        gate.unanswered = {"one": (browser, {"msg_id": "one", "msg_type": "execute_request"})}  # type: ignore[dict-item]
        await here.reconnect_clients(kernel, record, None)
        assert list(gate.uncertain) == ["one"] and named == []
        if not late:
            gate.uncertain.clear()  # the reply came
        here.expect_reply(kernel, "one")
        await asyncio.gather(*here._waiting)
        assert browser.replies == ([("one", {"execution_count": 1, "status": "ok"})] if late else [])
        assert named == ([kernel] if late else [])
        assert not here._waiting
        await server.end()

    asyncio.run(woken())

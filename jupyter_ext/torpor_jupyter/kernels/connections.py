"""This server's own connections to a kernel: the channels of websockets, and those by which it watches the kernel.

A woken kernel may ignore all of them until they reconnect under new identities: see `torpor_jupyter.kernels.gate`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from torpor_jupyter.data.records import CheckpointRecord
from torpor_jupyter.kernels.gate import reconnect
from torpor_jupyter.kernels.listener import Listener
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.provisioner import TorporProvisioner
from torpor_jupyter.kernels.quiescing import KernelSockets, wait_settled
from torpor_jupyter.kernels.registry import Registry
from torpor_jupyter.kernels.workers import Workers

LATE_SECONDS = 1.0
"""How long after a kernel's "idle" status the reply to a request may arrive: kernels send the reply first."""


class Connections:
    """The connections of one server to its kernels. All methods belong to its event loop."""

    def __init__(self, registry: Registry, workers: Workers, listener: Listener) -> None:
        """Begin without connections."""
        self._registry, self._workers, self.listener = registry, workers, listener
        self._waiting: set[asyncio.Task[None]] = set()

    def move(self, kernel_id: str, provisioner: TorporProvisioner, connection: dict[str, Any]) -> None:
        """Give a kernel the ports that it had at the checkpoint, and let all clients connect anew."""
        self._registry.manager.stop_watching_activity(kernel_id)
        provisioner.take_connection(connection)
        self._registry.manager._kernel_ports[kernel_id] = self._registry.kernel_manager(kernel_id).ports
        for websocket in self._websockets(kernel_id):
            websocket.websocket_handler.close()
        self._registry.manager.start_watching_activity(kernel_id)

    def counts(self, kernel_id: str) -> Counter[int]:
        """How many connections of this server's own each port of a kernel has."""
        manager = self._registry.kernel_manager(kernel_id)
        channels = [channel for channels in self._channels(kernel_id) for channel in channels]
        channels += ["iopub"] if getattr(manager, "_activity_stream", None) else []
        channels += ["control"] if manager._control_socket else []
        return Counter(getattr(manager, f"{channel}_port") for channel in channels)

    async def reconnect_clients(self, kernel_id: str, record: CheckpointRecord, process: KernelProcess | None) -> None:
        """Reconnect the clients of a woken kernel that may ignore their new connections: see the `gate` module.

        A kernel in the middle of a cell notices that the old connections are dead only when the cell is done, or when
        it waits for a user's input.
        """
        gate = self._registry.gate(kernel_id)
        gate.uncertain = {id: {"status": "ok"} for id in record.outstanding}
        if not record.outstanding:
            await self._rename_clients(kernel_id)
        elif gate.awaits_input and process:
            await self._workers.read(wait_settled, process.pid)
            for channels in self._channels(kernel_id):
                reconnect(stream.socket for name, stream in channels.items() if name == "stdin")

    async def _rename_clients(self, kernel_id: str) -> None:
        """Reconnect this server's sockets to a kernel under new identities, while requests wait."""
        manager = self._registry.kernel_manager(kernel_id)
        with self._registry.gate(kernel_id).hold():
            for channels in self._channels(kernel_id):
                # One name for all: the kernel asks that client on stdin which has sent the cell on shell.
                reconnect((stream.socket for name, stream in channels.items() if name != "iopub"), uuid4().hex.encode())
            if manager._control_socket:
                reconnect([manager._control_socket], uuid4().hex.encode())
            sockets = KernelSockets(manager.get_connection_info())
            await self._workers.read(sockets.wait_connected, self.counts(kernel_id))

    def expect_reply(self, kernel_id: str, id: str) -> None:
        """A kernel is done with a request in whose middle it was woken: see whether its reply arrives."""
        task = asyncio.ensure_future(self._answer_if_late(kernel_id, id))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _answer_if_late(self, kernel_id: str, id: str) -> None:
        await asyncio.sleep(LATE_SECONDS)
        gate = self._registry.gate(kernel_id)
        if id in gate.uncertain and kernel_id in self._registry.manager:
            gate.answer_for_kernel(id)
            await self._rename_clients(kernel_id)

    def _channels(self, kernel_id: str) -> list[dict[str, Any]]:
        """The streams to a kernel of each websocket, and those that wait for a browser to come back."""
        buffer = self._registry.manager._kernel_buffers.get(kernel_id)
        kept = [buffer["channels"]] if buffer else []
        kept += [{"stdin": stream} for stream in self.listener.streams(kernel_id)]
        return [*(connection.channels for connection in self._websockets(kernel_id)), *kept]

    def _websockets(self, kernel_id: str) -> list[ZMQChannelsWebsocketConnection]:
        return [
            connection
            for connection in ZMQChannelsWebsocketConnection._open_sockets
            if connection.kernel_id == kernel_id
        ]

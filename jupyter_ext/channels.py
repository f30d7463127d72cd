"""The websocket between a browser and a kernel, with a gate in it: while the gate is shut, requests wait at the server.

jupyter_server makes one of these for each websocket (ServerApp.kernel_websocket_connection_class). It also knows which
requests the kernel has not answered: after a rewind their cells would wait for ever, so they are told that they were
aborted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

V1 = "v1.kernel.websocket.jupyter.org"
"""The subprotocol with binary framing; without it messages are JSON."""
MAX_LINE = 120
"""Characters kept of a cell's first line."""


@dataclass
class Gate:
    """One kernel's requests and replies at the server."""

    shut: int = 0
    """How many hold it shut; requests wait while there is one."""
    waiting: list[tuple[TorporWebsocketConnection, Any]] = field(default_factory=list)
    unanswered: dict[str, tuple[TorporWebsocketConnection, dict[str, Any]]] = field(default_factory=dict)
    """Requests on the shell channel by their message id: who sent each, and its header."""
    cell: str = ""
    """The first line of the cell that was sent last."""
    execution_count: int = 0
    cells: int = 0
    """How many cells were sent."""
    began: dict[str, float] = field(default_factory=dict)
    """When each cell that is unanswered was sent, by time.monotonic()."""
    ended: float = 0.0
    """When the last cell ended."""
    kernel_info: dict[str, Any] | None = None
    """Set while there is no kernel to ask for it: what it last said of itself."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let requests wait; afterwards they go on in their order."""
        self.shut += 1
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Give up one hold."""
        self.shut -= 1
        while not self.shut and self.waiting:
            connection, message = self.waiting.pop(0)
            connection.handle_incoming_message(message)

    def abort_unanswered(self, still_running: set[str]) -> None:
        """Tell the senders of requests that the kernel, as it is now, never got: all but those in `still_running`."""
        for id in [id for id in self.unanswered if id not in still_running]:
            connection, header = self.unanswered.pop(id)
            self.began.pop(id, None)
            connection.abort(header)


class TorporWebsocketConnection(ZMQChannelsWebsocketConnection):
    """Jupyter's own connection behind a Gate."""

    @property
    def gate(self) -> Gate | None:
        """The gate of the kernel; None for a kernel that Torpor does not look after."""
        keeper = getattr(self.multi_kernel_manager, "torpor_keeper", None)
        gate: Gate | None = keeper.gate(self.kernel_id) if keeper else None
        return gate

    async def prepare(self) -> None:
        """As Jupyter does; a parked kernel cannot be asked for its kernel_info."""
        gate = self.gate
        while gate and gate.shut and gate.kernel_info is None:
            await asyncio.sleep(0.02)  # being saved, parked or woken
        if gate and gate.kernel_info is not None and not hasattr(self.kernel_manager, "_kernel_info_future"):
            known: Future[dict[str, Any]] = Future()
            known.set_result(gate.kernel_info)
            self.kernel_manager._kernel_info_future = known
        await super().prepare()

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """From the browser: let it wait, or note it and hand it on."""
        gate = self.gate
        if gate and gate.shut:
            gate.waiting.append((self, incoming_msg))
            return
        if gate:
            self._note_request(gate, incoming_msg)
        super().handle_incoming_message(incoming_msg)

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        gate = self.gate
        if gate and getattr(stream, "channel", "") == "shell":
            self._note_reply(gate, msg_list)
        super()._on_zmq_reply(stream, msg_list)

    def abort(self, header: dict[str, Any]) -> None:
        """Tell the browser that a request of its own was aborted (execute_reply with this status) and is done."""
        if not self.channels:
            return  # the browser has gone
        kind = header["msg_type"].replace("_request", "_reply")
        self._tell("shell", kind, {"status": "aborted"}, header)
        self._tell("iopub", "status", {"execution_state": "idle"}, header)

    def _tell(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        message = self.session.msg(kind, content, parent={"header": parent})
        if self.subprotocol == V1:
            self.write_message(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
        else:
            message["channel"] = channel
            self.write_message(json.dumps(message, default=str))

    def _note_request(self, gate: Gate, message: Any) -> None:
        if self.subprotocol == V1:
            channel, parts = deserialize_msg_from_ws_v1(message)
            if channel != "shell":
                return
            header = self.session.unpack(parts[0])
            content = self.session.unpack(parts[3]) if header["msg_type"] == "execute_request" else {}
        else:
            if isinstance(message, bytes):
                return  # with buffers: a comm message, which nobody waits for
            whole = json.loads(message)
            if whole.get("channel", "shell") != "shell":
                return
            header, content = whole["header"], whole.get("content", {})
        if not header["msg_type"].endswith("_request"):
            return
        gate.unanswered[header["msg_id"]] = (self, header)
        if header["msg_type"] == "execute_request" and not content.get("silent"):
            gate.cell = str(content.get("code", "")).strip().partition("\n")[0][:MAX_LINE]
            gate.cells += 1
            gate.began[header["msg_id"]] = time.monotonic()

    def _note_reply(self, gate: Gate, message: Any) -> None:
        if isinstance(message, dict):
            header, parent, content = message["header"], message["parent_header"], message["content"]
        else:
            header, parent = (self.session.unpack(part) for part in message[:2])
            content = self.session.unpack(message[3]) if header["msg_type"] == "execute_reply" else {}
        gate.unanswered.pop(parent.get("msg_id", ""), None)
        if header["msg_type"] == "execute_reply":
            gate.execution_count = content.get("execution_count") or gate.execution_count
            if (began := gate.began.pop(parent.get("msg_id", ""), None)) is not None:
                now = time.monotonic()
                seconds, gate.ended = now - max(began, gate.ended), now  # it began when the one before it had ended
                self.multi_kernel_manager.torpor_keeper.when_cell_ended(self.kernel_id, seconds)

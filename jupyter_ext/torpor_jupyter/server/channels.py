"""The websocket between a browser and a kernel, with a gate in it (see `torpor_jupyter.kernels.gate`).

jupyter_server makes one of these for each websocket (ServerApp.kernel_websocket_connection_class).
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import Future
from typing import Any

from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.provisioner import SERVICE
from torpor_jupyter.kernels.service import Service

V1 = "v1.kernel.websocket.jupyter.org"
"""The subprotocol with binary framing; without it messages are JSON."""
MAX_LINE = 120
"""Characters kept of a cell's first line."""


class TorporWebsocketConnection(ZMQChannelsWebsocketConnection):
    """Jupyter's own connection behind a Gate."""

    @property
    def service(self) -> Service | None:
        """The server extension, where it looks after the server's kernels."""
        return getattr(self.multi_kernel_manager, SERVICE, None)

    @property
    def gate(self) -> Gate | None:
        """The gate of the kernel; None for a kernel that Torpor does not look after."""
        return self.service.registry.gate(self.kernel_id) if self.service else None

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
        channel = getattr(stream, "channel", "")
        if service := self.service:
            gate = service.registry.gate(self.kernel_id)
            if channel == "shell":
                self._note_reply(service, gate, msg_list)
            elif channel == "iopub" and gate.uncertain:
                self._note_progress(service, gate, msg_list)
            elif channel == "stdin":
                gate.awaits_input = True
        super()._on_zmq_reply(stream, msg_list)

    def abort(self, header: dict[str, Any]) -> None:
        """Tell the browser that a request of its own was aborted (execute_reply with this status) and is done."""
        if self.channels:  # else the browser has gone
            self.send_reply(header, {"status": "aborted"})
            self._send("iopub", "status", {"execution_state": "idle"}, header)

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Give the browser a reply to a request of its own."""
        if self.channels:
            self._send("shell", header["msg_type"].replace("_request", "_reply"), content, header)

    def _send(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        message = self.session.msg(kind, content, parent={"header": parent})
        if self.subprotocol == V1:
            self.write_message(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
        else:
            message["channel"] = channel
            self.write_message(json.dumps(message, default=str))

    def _note_progress(self, service: Service, gate: Gate, message: Any) -> None:
        """From a kernel that was woken in the middle of requests: whether one failed, and that it is done with it."""
        kind, id = self._kind_and_parent(message)
        if id not in gate.uncertain:
            if id in gate.unanswered:
                gate.uncertain.clear()  # it was asked since, and heard it: it hands over
            return
        if kind == "error":
            gate.uncertain[id] = self._content(message) | {"status": "error"}
        if kind == "status" and self._content(message)["execution_state"] == "idle":
            service.connections.expect_reply(self.kernel_id, id)

    def _note_request(self, gate: Gate, message: Any) -> None:
        if self.subprotocol == V1:
            channel, parts = deserialize_msg_from_ws_v1(message)
            if channel != "shell":
                gate.awaits_input = gate.awaits_input and channel != "stdin"
                return
            header = self.session.unpack(parts[0])
            content = self.session.unpack(parts[3]) if header["msg_type"] == "execute_request" else {}
        else:
            if isinstance(message, bytes):
                return  # with buffers: a comm message, which nobody waits for
            whole = json.loads(message)
            if (channel := whole.get("channel", "shell")) != "shell":
                gate.awaits_input = gate.awaits_input and channel != "stdin"
                return
            header, content = whole["header"], whole.get("content", {})
        if not header["msg_type"].endswith("_request"):
            return
        gate.unanswered[header["msg_id"]] = (self, header)
        if header["msg_type"] == "execute_request" and not content.get("silent"):
            gate.cell = str(content.get("code", "")).strip().partition("\n")[0][:MAX_LINE]
            gate.cells_sent += 1
            gate.started[header["msg_id"]] = time.monotonic()

    def _note_reply(self, service: Service, gate: Gate, message: Any) -> None:
        kind, id = self._kind_and_parent(message)
        gate.unanswered.pop(id, None)
        gate.uncertain.pop(id, None)
        if kind == "execute_reply":
            gate.execution_count = self._content(message).get("execution_count") or gate.execution_count
            if (began := gate.started.pop(id, None)) is not None:
                now = time.monotonic()
                seconds = now - max(began, gate.last_ended)  # it began when the one before it had ended
                gate.last_ended = now
                service.when_cell_ended(self.kernel_id, seconds)

    def _kind_and_parent(self, message: Any) -> tuple[str, str]:
        """Of a message to the browser, which is unpacked already or not: its type, and the id of the request."""
        if isinstance(message, dict):
            header, parent = message["header"], message["parent_header"]
        else:
            header, parent = (self.session.unpack(part) for part in message[:2])
        return header["msg_type"], (parent or {}).get("msg_id", "")

    def _content(self, message: Any) -> dict[str, Any]:
        content: dict[str, Any] = message["content"] if isinstance(message, dict) else self.session.unpack(message[3])
        return content

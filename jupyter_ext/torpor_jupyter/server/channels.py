"""The websocket between a browser and a kernel, with a gate in it (see `torpor_jupyter.kernels.gate`).

jupyter_server makes one of these for each websocket (ServerApp.kernel_websocket_connection_class).
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import uuid4
from weakref import WeakSet

import zmq
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.websocket import WebSocketClosedError

from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.ipython import SESSION
from torpor_jupyter.kernels.provisioner import SERVICE
from torpor_jupyter.kernels.registry import tell_kernel_info
from torpor_jupyter.kernels.service import Service
from torpor_jupyter.kernels.transcript import PARTS

V1 = "v1.kernel.websocket.jupyter.org"
"""The subprotocol with binary framing; without it messages are JSON."""
MAX_LINE = 120
"""Characters kept of a cell's first line."""
_welcomed: WeakSet[Any] = WeakSet()
"""The streams to kernels on which an iopub_welcome has come. A page that reconnects gets the same streams."""


class TorporWebsocketConnection(ZMQChannelsWebsocketConnection):
    """Jupyter's own connection behind a Gate."""

    @property
    def service(self) -> Service | None:
        """Torpor's service; None if the server extension does not manage the server's kernels."""
        return getattr(self.multi_kernel_manager, SERVICE, None)

    @property
    def gate(self) -> Gate | None:
        """The gate of the kernel; None if Torpor does not manage the server's kernels."""
        return self.service.registry.gate(self.kernel_id) if self.service else None

    async def prepare(self) -> None:
        """Prepare as Jupyter does, but do not ask a parked kernel for its kernel_info."""
        gate = self.gate
        while gate and gate.shut and gate.kernel_info is None:
            await asyncio.sleep(0.02)  # being saved, parked or woken
        if gate and gate.kernel_info is not None:
            tell_kernel_info(self.kernel_manager, gate.kernel_info)
        await super().prepare()

    def connect(self) -> Any:
        """Connect as Jupyter does. The listener need not stand in for the page any more."""
        if service := self.service:
            service.listener.returns(self.kernel_id, self._session_id)
        return super().connect()

    def disconnect(self) -> Any:
        """Disconnect as Jupyter does. It keeps only the last page's streams: the listener takes those of others."""
        service, stream = self.service, None
        others = self.multi_kernel_manager._kernel_connections.get(self.kernel_id, 0) > 1
        if service and others and service.listener.awaits(self.kernel_id, self._session_id):
            stream = self.channels.pop("stdin", None)
        super().disconnect()
        if service and not self._kept():
            service.listener.stand_in(self.kernel_id, self._session_id, stream)

    @property
    def _session_id(self) -> str:
        return str(self.session_key).partition(":")[2]

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Handle a message from the browser: while the gate is shut, let it wait; otherwise note and forward it."""
        gate = self.gate
        if gate and gate.shut:
            gate.waiting.append((self, incoming_msg))
            return
        if gate:
            self._note_request(gate, incoming_msg)
        # A browser that let it wait may have gone since, or be back by another websocket.
        if (page := self._page()) is not None:
            super(TorporWebsocketConnection, page).handle_incoming_message(incoming_msg)
        else:
            self._send_for_the_gone(incoming_msg)

    @property
    def has_gone(self) -> bool:
        """Whether the browser has closed it."""
        return self not in self._open_sockets

    def _page(self) -> TorporWebsocketConnection | None:
        """The present websocket of its page: itself, or the one by which the page has reconnected; None if neither."""
        if not self.has_gone:
            return self
        others = (other for other in self._open_sockets if isinstance(other, TorporWebsocketConnection))
        return next((other for other in others if other.session_key == self.session_key), None)

    def _send_for_the_gone(self, message: Any) -> None:
        """Forward a request whose browser has gone: the kernel runs the cell anyway, as it would without Torpor."""
        if kept := self._kept():
            self.channels = kept["channels"]
        elif all(stream.closed() for stream in self.channels.values()):
            # A kernel that does not hand over ignores who comes under a name before it has seen its old connection end.
            self.session.session = uuid4().hex
            self.create_stream()
            asyncio.get_running_loop().call_soon(self._close_streams)  # all that has waited goes by one, in its order
        super().handle_incoming_message(message)

    def _close_streams(self) -> None:
        for stream in self.channels.values():
            stream.flush(zmq.POLLOUT)
            stream.close()
        self.channels = {}

    def _kept(self) -> dict[str, Any] | None:
        """What jupyter_server keeps until the page reconnects: its streams to the kernel, and their messages."""
        kept = self.multi_kernel_manager._kernel_buffers.get(self.kernel_id)
        return kept if kept and kept["session_key"] == self.session_key else None

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        channel = getattr(stream, "channel", "")
        if channel == "iopub" and self._is_for_nobody(stream, msg_list):
            return
        if service := self.service:
            gate = service.registry.gate(self.kernel_id)
            if channel == "shell":
                self._note_reply(service, gate, msg_list)
            elif channel == "iopub" and gate.uncertain:
                self._note_progress(service, gate, msg_list)
            elif channel == "stdin":
                gate.awaits_input = True
                self._note_question(service, msg_list)
        super()._on_zmq_reply(stream, msg_list)

    def _is_for_nobody(self, stream: Any, message: Any) -> bool:
        """Whether a message must be hidden from the page: it answers Torpor's own request, or is a second welcome.

        A kernel with an XPUB socket sends iopub_welcome to each new subscriber (JEP 65). After a wake, all clients
        subscribe again.
        """
        header, parent = (
            (message["header"]["msg_type"].encode(), str((message["parent_header"] or {}).get("session")).encode())
            if isinstance(message, dict)
            else message[:2]
        )
        if SESSION.encode() in parent:
            return True
        if b"iopub_welcome" not in header:
            return False
        again = stream in _welcomed
        _welcomed.add(stream)
        return again

    def abort(self, header: dict[str, Any]) -> None:
        """Tell the browser that a request of its own was aborted (execute_reply with this status) and is done."""
        self.send_reply(header, {"status": "aborted"})
        self._send("iopub", "status", {"execution_state": "idle"}, header)

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Send the browser a reply to one of its requests."""
        self._send("shell", header["msg_type"].replace("_request", "_reply"), content, header)

    def _send(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        message = self.session.msg(kind, content, parent={"header": parent})
        if (page := self._page()) is None:
            if kept := self._kept():  # it is told when it comes back
                kept["buffer"].append((channel, self.session.serialize(message)))
            return
        try:
            if page.subprotocol == V1:
                page.write_message(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
            else:
                page.write_message(json.dumps(message | {"channel": channel}, default=str))
        except WebSocketClosedError:
            self.log.debug("A browser goes that would have been told of its request")

    def _note_progress(self, service: Service, gate: Gate, message: Any) -> None:
        """Note messages about requests that were unanswered at a wake: whether one has failed, and when it is done."""
        kind, id = self._kind_and_parent(message)
        if id not in gate.uncertain:
            if id in gate.unanswered:
                gate.uncertain.clear()  # it was asked since, and has received it: it hands over
            return
        if kind == "error":
            gate.uncertain[id] = self._content(message) | {"status": "error"}
        if kind == "status" and self._content(message)["execution_state"] == "idle":
            service.connections.expect_reply(self.kernel_id, id)

    def abort_cell(self, message: Any) -> bool:
        """If a request of the browser is a cell, tell the browser that it was aborted. Return whether it is one."""
        channel, header, _, _ = self._read(message)
        if channel != "shell" or header["msg_type"] != "execute_request":
            return False
        self.abort(header)
        return True

    def _read(self, message: Any) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Read a message from the browser: channel, header, and if it is a cell, content and metadata."""
        if self.subprotocol == V1:
            channel, parts = deserialize_msg_from_ws_v1(message)
            header = self.session.unpack(parts[0])
            if header["msg_type"] != "execute_request":
                return channel, header, {}, {}
            return channel, header, self.session.unpack(parts[3]), self.session.unpack(parts[2])
        if isinstance(message, bytes):  # with buffers: a comm message, which nobody waits for
            return "shell", {"msg_type": "comm_msg"}, {}, {}
        whole = json.loads(message)
        return whole.get("channel", "shell"), whole["header"], whole.get("content", {}), whole.get("metadata", {})

    def _note_request(self, gate: Gate, message: Any) -> None:
        channel, header, content, metadata = self._read(message)
        assert self.service  # it has the gate
        transcript = self.service.registry.state(self.kernel_id).transcript
        if channel != "shell":
            if channel == "stdin":
                gate.awaits_input = False
                transcript.answered()
            return
        if not header["msg_type"].endswith("_request"):
            return
        gate.unanswered[header["msg_id"]] = (self, header)
        if header["msg_type"] == "execute_request" and not content.get("silent"):
            gate.cell = str(content.get("code", "")).strip().partition("\n")[0][:MAX_LINE]
            gate.cells_sent += 1
            gate.started[header["msg_id"]] = time.monotonic()
            transcript.begin(header, str(metadata.get("cellId", "")), str(content.get("code", "")))

    def _note_question(self, service: Service, message: Any) -> None:
        """Note an input request, since the page may go before it is answered."""
        if not isinstance(message, dict):
            message = dict(zip(PARTS, map(self.session.unpack, message), strict=False))
        service.registry.state(self.kernel_id).transcript.add_message("stdin", message, 0)

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
        """The type of a message to the browser, unpacked or not, and the id of the request that it answers."""
        if isinstance(message, dict):
            header, parent = message["header"], message["parent_header"]
        else:
            header, parent = (self.session.unpack(part) for part in message[:2])
        return header["msg_type"], (parent or {}).get("msg_id", "")

    def _content(self, message: Any) -> dict[str, Any]:
        content: dict[str, Any] = message["content"] if isinstance(message, dict) else self.session.unpack(message[3])
        return content

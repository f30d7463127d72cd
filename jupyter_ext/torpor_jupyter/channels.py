"""The websocket between a browser and a kernel, with a gate in it: while the gate is shut, requests wait at the server.

jupyter_server makes one of these for each websocket (ServerApp.kernel_websocket_connection_class). It also knows which
requests the kernel has not answered: after a rewind their cells would wait for ever, so they are told that they were
aborted.

A kernel's ROUTER sockets that do not hand over (ZMQ_ROUTER_HANDOVER, which ipykernel sets, and xeus and IRkernel do
not) ignore whoever returns under the name of a connection before they have seen that it is dead, as everybody does at
a wake; and they drop a reply to it. So the clients of such a kernel connect once more under new names, and a reply
that was dropped is made good.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import zmq
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
    asking: bool = False
    """Whether the kernel waits for a line from a person (``input()``)."""
    doubtful: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Replies that a kernel may drop, because it was woken before it sends them: what they will say, by message id."""

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

    def make_good(self, id: str) -> None:
        """Give the reply to a request that the kernel has answered to nobody, and abort what it has not heard since."""
        reply = self.doubtful.pop(id)
        connection, header = self.unanswered.pop(id, (None, {}))
        self.began.pop(id, None)
        if connection and header["msg_type"] == "execute_request":
            self.execution_count += 1
            connection.tell_reply(header, {"execution_count": self.execution_count} | reply)
        elif connection:
            connection.abort(header)
        self.abort_unanswered(set(self.doubtful))

    def abort_unanswered(self, still_running: set[str]) -> None:
        """Tell the senders of requests that the kernel, as it is now, never got: all but those in `still_running`."""
        for id in [id for id in self.unanswered if id not in still_running]:
            connection, header = self.unanswered.pop(id)
            self.began.pop(id, None)
            connection.abort(header)


def reconnect(sockets: Iterable[Any], name: bytes | None = None) -> None:
    """Connect the sockets of one client to their kernel anew, under another name than before, if one is given."""
    for socket in sockets:
        address = socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        socket.disconnect(address)
        if name:
            socket.setsockopt(zmq.IDENTITY, name)
        socket.connect(address)


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
        channel = getattr(stream, "channel", "")
        if gate and channel == "shell":
            self._note_reply(gate, msg_list)
        elif gate and channel == "iopub" and gate.doubtful:
            self._note_end(gate, msg_list)
        elif gate and channel == "stdin":
            gate.asking = True
        super()._on_zmq_reply(stream, msg_list)

    def abort(self, header: dict[str, Any]) -> None:
        """Tell the browser that a request of its own was aborted (execute_reply with this status) and is done."""
        if self.channels:  # else the browser has gone
            self.tell_reply(header, {"status": "aborted"})
            self._tell("iopub", "status", {"execution_state": "idle"}, header)

    def tell_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Give the browser a reply to a request of its own."""
        if self.channels:
            self._tell("shell", header["msg_type"].replace("_request", "_reply"), content, header)

    def _tell(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        message = self.session.msg(kind, content, parent={"header": parent})
        if self.subprotocol == V1:
            self.write_message(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
        else:
            message["channel"] = channel
            self.write_message(json.dumps(message, default=str))

    def _note_end(self, gate: Gate, message: Any) -> None:
        """From a kernel that was woken in the middle of requests: whether one failed, and that it is done with it."""
        kind, id = self._kind_and_parent(message)
        if id not in gate.doubtful:
            if id in gate.unanswered:
                gate.doubtful.clear()  # it was asked since, and heard it: it hands over
            return
        if kind == "error":
            gate.doubtful[id] = self._content(message) | {"status": "error"}
        if kind == "status" and self._content(message)["execution_state"] == "idle":
            self.multi_kernel_manager.torpor_keeper.when_reply_is_due(self.kernel_id, id)

    def _note_request(self, gate: Gate, message: Any) -> None:
        if self.subprotocol == V1:
            channel, parts = deserialize_msg_from_ws_v1(message)
            if channel != "shell":
                gate.asking = gate.asking and channel != "stdin"
                return
            header = self.session.unpack(parts[0])
            content = self.session.unpack(parts[3]) if header["msg_type"] == "execute_request" else {}
        else:
            if isinstance(message, bytes):
                return  # with buffers: a comm message, which nobody waits for
            whole = json.loads(message)
            if (channel := whole.get("channel", "shell")) != "shell":
                gate.asking = gate.asking and channel != "stdin"
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
        kind, id = self._kind_and_parent(message)
        gate.unanswered.pop(id, None)
        gate.doubtful.pop(id, None)
        if kind == "execute_reply":
            gate.execution_count = self._content(message).get("execution_count") or gate.execution_count
            if (began := gate.began.pop(id, None)) is not None:
                now = time.monotonic()
                seconds, gate.ended = now - max(began, gate.ended), now  # it began when the one before it had ended
                self.multi_kernel_manager.torpor_keeper.when_cell_ended(self.kernel_id, seconds)

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

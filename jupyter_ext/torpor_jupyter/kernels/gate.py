"""A kernel's requests and replies at the server: while its gate is shut, requests wait.

The gate also knows which requests the kernel has not answered. After a rewind the kernel never answers them: so their
senders are told that the cells were aborted.

At a wake, all clients reconnect with their old ZeroMQ identity. A ROUTER socket with ZMQ_ROUTER_HANDOVER (ipykernel
sets it; xeus and IRkernel do not) then hands the identity over to the new connection. Without it, the socket ignores
the new connection until it has seen that the old one is dead, and drops replies to it. So the clients of such a kernel
connect again under new identities, and the server supplies a reply that was dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq
from tornado.log import app_log


class Client(Protocol):
    """A sender of requests: a browser's websocket (`torpor_jupyter.server.channels`)."""

    @property
    def has_gone(self) -> bool:
        """Whether the browser has closed this websocket: then it does not get the kernel's replies any more."""

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Forward a request that has waited to the kernel."""

    def abort_cell(self, message: Any) -> bool:
        """If a request that has waited is a cell, tell the browser that it was aborted. Return whether it is one."""

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Send the browser a reply to the request with this header."""

    def abort(self, header: dict[str, Any]) -> None:
        """Tell the browser that the request with this header was aborted."""


class Gone:
    """The sender of a request that an earlier server has forwarded: nobody."""

    has_gone = True

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Forward nothing: it sends no more."""

    def abort_cell(self, message: Any) -> bool:
        """Abort nothing."""
        return False

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Send nothing."""

    def abort(self, header: dict[str, Any]) -> None:
        """Tell nobody."""


@dataclass
class Gate:
    """One kernel's requests and replies at the server."""

    shut: int = 0
    """How many callers hold it shut. Requests wait while it is not 0."""
    waiting: list[tuple[Client, Any]] = field(default_factory=list)
    unanswered: dict[str, tuple[Client, dict[str, Any]]] = field(default_factory=dict)
    """Unanswered requests on the shell channel, by message id: the sender, and the header."""
    cell: str = ""
    """The first line of the cell that was sent last."""
    execution_count: int = 0
    cells_sent: int = 0
    """How many cells were sent."""
    started: dict[str, float] = field(default_factory=dict)
    """When each unanswered cell was sent (time.monotonic())."""
    last_ended: float = 0.0
    """When the last cell ended."""
    kernel_info: dict[str, Any] | None = None
    """The last kernel_info_reply, while the kernel is parked and cannot be asked; None otherwise."""
    awaits_input: bool = False
    """Whether the kernel waits for a line from a person (``input()``)."""
    uncertain: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Replies that the kernel may drop, because it was woken before it could send them: their content, by message id.
    """

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let requests wait; afterwards forward them in their order."""
        self.close()
        try:
            yield
        finally:
            self.open()

    def close(self) -> None:
        """Let requests wait until `open` has been called as often as this."""
        self.shut += 1

    def open(self) -> None:
        """Release one hold. With the last one, forward the requests that have waited."""
        self.shut -= 1
        while not self.shut and self.waiting:
            connection, message = self.waiting.pop(0)
            try:
                connection.handle_incoming_message(message)
            except Exception:  # a malformed request of one browser must not hold up those of others
                app_log.exception("A request that has waited cannot be sent on")

    def begin_anew(self) -> None:
        """Handle a restart of the kernel: abort cells that it has not run; other requests go to the new process."""
        self.cell, self.execution_count, self.cells_sent, self.kernel_info = "", 0, 0, None
        self.awaits_input = False
        self.uncertain.clear()
        self.abort_unanswered(set())
        self.abort_waiting()

    def abort_waiting(self) -> None:
        """Abort the cells that wait, and tell their senders. Other requests continue to wait."""
        waited, self.waiting = self.waiting, []
        for client, message in waited:
            try:
                if not client.abort_cell(message):
                    self.waiting.append((client, message))
            except Exception:  # a malformed request of one browser must not stop this
                app_log.exception("A request that has waited cannot be read")

    def forget_gone(self) -> None:
        """Forget the requests of browsers that have gone. Call it while the kernel is idle: it has answered them."""
        for id in [id for id, (connection, _) in self.unanswered.items() if connection.has_gone]:
            del self.unanswered[id]
            self.started.pop(id, None)

    def answered_unheard(self, id: str) -> None:
        """Note that the kernel is done with a request. If its sender has gone, the reply comes to nobody here."""
        if id in self.unanswered and self.unanswered[id][0].has_gone:
            del self.unanswered[id]
            self.started.pop(id, None)

    def answer_for_kernel(self, id: str) -> None:
        """Send the reply that the kernel has dropped, and abort the requests that it has not received since."""
        reply = self.uncertain.pop(id)
        connection, header = self.unanswered.pop(id, (None, {}))
        self.started.pop(id, None)
        if connection and header["msg_type"] == "execute_request":
            self.execution_count += 1
            connection.send_reply(header, {"execution_count": self.execution_count} | reply)
        elif connection:
            connection.abort(header)
        self.abort_unanswered(set(self.uncertain))

    def abort_unanswered(self, still_running: set[str]) -> None:
        """Abort all unanswered requests except `still_running`: the kernel, in its current state, never got them."""
        for id in [id for id in self.unanswered if id not in still_running]:
            connection, header = self.unanswered.pop(id)
            self.started.pop(id, None)
            connection.abort(header)


def reconnect(sockets: Iterable[Any], name: bytes | None = None) -> None:
    """Reconnect the sockets of one client to their kernel; under the ZeroMQ identity `name`, if it is given."""
    for socket in sockets:
        address = socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        socket.disconnect(address)
        if name:
            socket.setsockopt(zmq.IDENTITY, name)
        socket.connect(address)

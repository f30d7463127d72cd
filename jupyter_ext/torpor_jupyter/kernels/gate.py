"""A kernel's requests and replies at the server: while its gate is shut, requests wait.

It also knows which requests the kernel has not answered: after a rewind their cells would wait for ever, so they are
told that they were aborted.

A kernel's ROUTER sockets that do not hand over (ZMQ_ROUTER_HANDOVER, which ipykernel sets, and xeus and IRkernel do
not) ignore whoever returns under the name of a connection before they have seen that it is dead, as everybody does at
a wake; and they drop a reply to it. So the clients of such a kernel connect once more under new names, and a reply
that was dropped is made good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq
from tornado.log import app_log


class Client(Protocol):
    """Who sends requests: a browser's websocket (`torpor_jupyter.server.channels`)."""

    @property
    def has_gone(self) -> bool:
        """Whether the browser has closed this websocket: what the kernel answers is not seen here any more."""

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Send a request that has waited on to the kernel."""

    def abort_cell(self, message: Any) -> bool:
        """Say that a request that has waited was aborted, if it is a cell; whether it is one."""

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        """Give a reply to the request with this header."""

    def abort(self, header: dict[str, Any]) -> None:
        """Say that the request with this header was aborted."""


@dataclass
class Gate:
    """One kernel's requests and replies at the server."""

    shut: int = 0
    """How many hold it shut; requests wait while there is one."""
    waiting: list[tuple[Client, Any]] = field(default_factory=list)
    unanswered: dict[str, tuple[Client, dict[str, Any]]] = field(default_factory=dict)
    """Requests on the shell channel by their message id: who sent each, and its header."""
    cell: str = ""
    """The first line of the cell that was sent last."""
    execution_count: int = 0
    cells_sent: int = 0
    """How many cells were sent."""
    started: dict[str, float] = field(default_factory=dict)
    """When each cell that is unanswered was sent, by time.monotonic()."""
    last_ended: float = 0.0
    """When the last cell ended."""
    kernel_info: dict[str, Any] | None = None
    """Set while there is no kernel to ask for it: what it last said of itself."""
    awaits_input: bool = False
    """Whether the kernel waits for a line from a person (``input()``)."""
    uncertain: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Replies that a kernel may drop, because it was woken before it sends them: what they will say, by message id."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let requests wait; afterwards they go on in their order."""
        self.close()
        try:
            yield
        finally:
            self.open()

    def close(self) -> None:
        """Let requests wait until `open` has been called as often as this."""
        self.shut += 1

    def open(self) -> None:
        """Release one hold; with the last one the requests that waited are sent on."""
        self.shut -= 1
        while not self.shut and self.waiting:
            connection, message = self.waiting.pop(0)
            try:
                connection.handle_incoming_message(message)
            except Exception:  # nonsense from one browser: the others' requests still go on
                app_log.exception("A request that has waited cannot be sent on")

    def begin_anew(self) -> None:
        """The kernel was started again: cells that it has not run are aborted; other requests are for the new one."""
        self.cell, self.execution_count, self.cells_sent, self.kernel_info = "", 0, 0, None
        self.awaits_input = False
        self.uncertain.clear()
        self.abort_unanswered(set())
        self.abort_waiting()

    def abort_waiting(self) -> None:
        """Tell the senders of cells that wait that these were aborted; other requests wait on."""
        waited, self.waiting = self.waiting, []
        for client, message in waited:
            try:
                if not client.abort_cell(message):
                    self.waiting.append((client, message))
            except Exception:  # nonsense from one browser is no reason to stop here
                app_log.exception("A request that has waited cannot be read")

    def forget_gone(self) -> None:
        """Of a kernel that is idle: what browsers have asked it that have gone since is answered."""
        for id in [id for id, (connection, _) in self.unanswered.items() if connection.has_gone]:
            del self.unanswered[id]
            self.started.pop(id, None)

    def answer_for_kernel(self, id: str) -> None:
        """Give the reply to a request that the kernel has answered to nobody, and abort what it has not heard since."""
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
        """Tell the senders of requests that the kernel, as it is now, never got: all but those in `still_running`."""
        for id in [id for id in self.unanswered if id not in still_running]:
            connection, header = self.unanswered.pop(id)
            self.started.pop(id, None)
            connection.abort(header)


def reconnect(sockets: Iterable[Any], name: bytes | None = None) -> None:
    """Connect the sockets of one client to their kernel anew, under another name than before, if one is given."""
    for socket in sockets:
        address = socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        socket.disconnect(address)
        if name:
            socket.setsockopt(zmq.IDENTITY, name)
        socket.connect(address)

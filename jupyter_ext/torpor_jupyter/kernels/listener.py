"""Receive the output and input requests of cells whose pages have gone, and give them to the next page."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import takewhile
from typing import Any

from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from torpor_jupyter.kernels.gate import Gone
from torpor_jupyter.kernels.registry import Registry
from torpor_jupyter.kernels.transcript import Cell, Transcript


class Listener:
    """Receives messages of one server's kernels for pages that have gone. All methods belong to its event loop."""

    def __init__(self, registry: Registry, emit: Callable[[str, str], None]) -> None:
        """Listen to each kernel that the server's manager begins to watch. `emit` is called when one asks for input."""
        self._registry, self._emit, self._manager = registry, emit, registry.manager
        self._stdin: dict[tuple[str, str], Any] = {}
        """The stdin streams that replace those of pages that have gone, by kernel and session."""
        manager: Any = self._manager
        watch, stop_watching = manager.start_watching_activity, manager.stop_watching_activity
        stop_buffering = manager.stop_buffering

        def start_watching_activity(kernel_id: str) -> None:
            watch(kernel_id)
            self._tap_activity_stream(kernel_id)

        def stop_watching_activity(kernel_id: str) -> None:
            self._forget(kernel_id)
            stop_watching(kernel_id)

        def stop(kernel_id: str) -> None:
            kept = manager._kernel_buffers.get(kernel_id)
            stream = kept["channels"].pop("stdin", None) if kept else None
            stop_buffering(kernel_id)
            if kept:  # a page with another session has connected
                for parts in (parts for channel, parts in kept["buffer"] if channel == "stdin"):
                    self._on_message(kernel_id, "stdin", parts, self._session(kernel_id))
                self.stand_in(kernel_id, kept["session_key"].partition(":")[2], stream)

        manager.start_watching_activity, manager.stop_watching_activity = (
            start_watching_activity,
            stop_watching_activity,
        )
        manager.stop_buffering = stop

    def take(self, kernel_id: str, session: str) -> list[dict[str, Any]]:
        """Give the page of a session all cells whose page has gone."""
        cells = self._registry.state(kernel_id).transcript.cells.values()
        found = [cell for cell in cells if cell.owner == session or not self._is_there(kernel_id, cell.owner)]
        for cell in found:
            cell.owner = session
            self._forget_seen(kernel_id, cell)
        return [cell.as_json() for cell in found]

    def awaits(self, kernel_id: str, session: str) -> bool:
        """Whether a cell that a page with this session has sent still runs."""
        cells = self._registry.state(kernel_id).transcript.cells.values()
        return any(not cell.done and cell.request.get("session") == session for cell in cells)

    def stand_in(self, kernel_id: str, session: str, stream: Any = None) -> None:
        """Receive a kernel's input requests for a page that has gone, if a cell of its session still runs.

        The page's own stream is used, if it is given: a new one would lose requests that come before it is connected.
        """
        known = kernel_id in self._manager and (kernel_id, session) not in self._stdin
        if not (known and session and self.awaits(kernel_id, session)):
            if stream is not None:
                stream.close()
            return
        if stream is None:
            stream = self._registry.kernel_manager(kernel_id).connect_stdin(identity=session.encode())
        checked = self._session(kernel_id)
        stream.on_recv(lambda parts: self._on_message(kernel_id, "stdin", parts, checked))
        self._stdin[kernel_id, session] = stream

    def returns(self, kernel_id: str, session: str) -> None:
        """Close the stream for a session: its page is connected again, or none of its cells runs any more."""
        if stream := self._stdin.pop((kernel_id, session), None):
            stream.close(linger=0)

    def _forget(self, kernel_id: str) -> None:
        for known, session in list(self._stdin):
            if known == kernel_id:
                self.returns(known, session)

    def streams(self, kernel_id: str) -> list[Any]:
        """The streams for pages of a kernel that have gone."""
        return [stream for (known, _), stream in self._stdin.items() if known == kernel_id]

    def load(self, kernel_id: str, text: str, running: Collection[str]) -> None:
        """Before a kernel is woken, continue with the messages that were kept with the checkpoint.

        Args:
            kernel_id: the kernel.
            text: the messages.
            running: the ids of the requests that it has not answered then.
        """
        transcript = self._registry.state(kernel_id).transcript
        kept = Transcript.of(text)
        transcript.forget_running(running)
        for cell in kept.running:
            if (id := cell.request["msg_id"]) in running:
                transcript.cells.setdefault(id, cell)
        self.go_on(kernel_id)

    def go_on(self, kernel_id: str) -> None:
        """Receive the messages about running cells that an earlier server has sent to a kernel."""
        state = self._registry.state(kernel_id)
        for cell in state.transcript.running:
            state.gate.unanswered.setdefault(cell.request["msg_id"], (Gone(), cell.request))
            session = cell.request.get("session", "")
            if not self._is_there(kernel_id, session):
                self.stand_in(kernel_id, session)

    def end(self, kernel_id: str, cells: list[Cell]) -> None:
        """Mark cells as done whose end was not received, and let pages know."""
        state = self._registry.state(kernel_id)
        for cell in cells:
            cell.end()
            state.transcript.changes += 1
            state.gate.answered_unheard(cell.request["msg_id"])
        if cells:
            self._emit(kernel_id, "ended")

    def _tap_activity_stream(self, kernel_id: str) -> None:
        stream = self._registry.kernel_manager(kernel_id)._activity_stream
        watch, checked = stream._recv_callback, self._session(kernel_id)

        def both(parts: Any) -> None:
            watch(parts)
            if self._registry.state(kernel_id).transcript.cells:
                self._on_message(kernel_id, "iopub", parts, checked)

        stream.on_recv(both)

    def _on_message(self, kernel_id: str, channel: str, parts: Any, session: Session) -> None:
        message = session.deserialize(session.feed_identities(parts)[1])
        transcript = self._registry.state(kernel_id).transcript
        if (cell := transcript.add_message(channel, message, sum(map(len, parts)))) is None:
            return
        # A kernel runs cells in their order: those before this one have ended.
        before = takewhile(lambda other: other is not cell, transcript.cells.values())
        self.end(kernel_id, [other for other in before if other.taken_up and not other.done])
        if channel == "stdin":
            self._registry.gate(kernel_id).awaits_input = True
            self._emit(kernel_id, "asks")
        if cell.done:
            gate = self._registry.gate(kernel_id)
            gate.answered_unheard(cell.request["msg_id"])
            gate.execution_count = cell.count or gate.execution_count
            self._forget_seen(kernel_id, cell)
            session_id = cell.request.get("session", "")
            if all(other.done for other in transcript.cells.values() if other.request.get("session") == session_id):
                self.returns(kernel_id, session_id)

    def _forget_seen(self, kernel_id: str, cell: Cell) -> None:
        if cell.done and self._is_there(kernel_id, cell.owner):
            self._registry.state(kernel_id).transcript.forget(cell.request["msg_id"])

    def _is_there(self, kernel_id: str, session: str) -> bool:
        """Whether a page of this session is connected."""
        key = f"{kernel_id}:{session}"
        return any(page.session_key == key for page in ZMQChannelsWebsocketConnection._open_sockets)

    def _session(self, kernel_id: str) -> Session:
        kernel = self._registry.kernel_manager(kernel_id)
        return Session(config=kernel.session.config, key=kernel.session.key)

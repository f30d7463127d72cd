"""The messages of a kernel about the cells that it runs, kept for a page that connects later.

Jupyter itself keeps them only for a page that reconnects to the same server with its old session. A reloaded page has a
new session, and so has every page on the next server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.jsonutil import json_default

KEPT = 4 << 20
"""The most bytes of messages to keep for one cell, and for all cells that are done. The oldest are dropped first."""
PARTS = ("header", "parent_header", "metadata", "content")


@dataclass
class Cell:
    """A cell that a kernel was asked to run."""

    request: dict[str, Any]
    """The header of the request."""
    cell: str
    """Its id in the notebook; empty if the page did not give it."""
    code: str
    owner: str
    """The session of the page that shows it."""
    done: bool = False
    dropped: int = 0
    """How many messages were dropped because they were too many."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def add(self, message: dict[str, Any], size: int) -> None:
        """Keep a message, with its channel."""
        self.messages.append(message | {"size": size})
        self.size += size
        while self.size > KEPT and len(self.messages) > 1:
            self.size -= self.messages.pop(0)["size"]
            self.dropped += 1

    def as_json(self) -> dict[str, Any]:
        """The cell as JSON for the REST API."""
        messages = [{key: message[key] for key in (*PARTS, "channel")} for message in self.messages]
        known = {"request": self.request, "cell": self.cell, "code": self.code, "done": self.done}
        answer: dict[str, Any] = json.loads(
            json.dumps(known | {"dropped": self.dropped, "messages": messages}, default=json_default)
        )
        return answer


class Transcript:
    """The cells of one kernel that run, wait to run, or have ended while no page showed them."""

    def __init__(self) -> None:
        """Begin without cells."""
        self.cells: dict[str, Cell] = {}

    @classmethod
    def of(cls, text: str, running: list[str]) -> Transcript:
        """Read a text of `as_text`, and keep the cells that still run. Raises ValueError for another text."""
        found = cls()
        for one in json.loads(text):
            cell = Cell(one["request"], one["cell"], one["code"], owner="")
            for message in one["messages"]:
                cell.add(message, len(json.dumps(message)))
            if (id := one["request"]["msg_id"]) in running:
                found.cells[id] = cell
        return found

    def as_text(self) -> str:
        """The cells that run, as text to keep with a parked kernel; empty if none runs."""
        running = [cell.as_json() for cell in self.cells.values() if not cell.done]
        return json.dumps(running) if running else ""

    def begin(self, request: dict[str, Any], cell: str, code: str) -> None:
        """Note a cell that a page has asked the kernel to run."""
        done = {id: known.size for id, known in self.cells.items() if known.done}  # a page for them may never come
        for id in list(done):
            if sum(done.values()) > KEPT:
                done.pop(id)
                del self.cells[id]
        self.cells[request["msg_id"]] = Cell(request, cell, code, owner=request.get("session", ""))

    def hear(self, channel: str, message: dict[str, Any], size: int) -> Cell | None:
        """Keep a message of the kernel. Return the cell that it belongs to, None if there is none that is not done."""
        cell = self.cells.get((message["parent_header"] or {}).get("msg_id", ""))
        if cell is None or cell.done:
            return None
        cell.add({key: message[key] for key in PARTS} | {"channel": channel}, size)
        kind = message["header"]["msg_type"]
        cell.done = kind == "status" and message["content"]["execution_state"] == "idle"
        return cell

    def answered(self) -> None:
        """Drop the kernel's requests for input: a user has entered the line."""
        for cell in self.cells.values():
            cell.messages = [message for message in cell.messages if message["channel"] != "stdin"]

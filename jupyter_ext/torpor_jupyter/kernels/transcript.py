"""What a kernel says of the cells that it runs, kept for a page that comes later.

Jupyter keeps it only for a page that comes back under its old session to the same server. A page that was reloaded has
another session, and on the next server nobody has the old one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.jsonutil import json_default

KEPT = 4 << 20
"""Bytes that are kept of what one cell has said, and of all that are done; what was said first goes first."""
PARTS = ("header", "parent_header", "metadata", "content")


@dataclass
class Cell:
    """A cell that a kernel was asked to run."""

    request: dict[str, Any]
    """The header of the request."""
    cell: str
    """Its id in the notebook; empty if the page did not tell it."""
    code: str
    owner: str
    """The session of the page that shows it."""
    done: bool = False
    dropped: int = 0
    """How many messages went because they were too many."""
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
        """For the REST API."""
        messages = [{key: message[key] for key in (*PARTS, "channel")} for message in self.messages]
        known = {"request": self.request, "cell": self.cell, "code": self.code, "done": self.done}
        answer: dict[str, Any] = json.loads(
            json.dumps(known | {"dropped": self.dropped, "messages": messages}, default=json_default)
        )
        return answer


class Transcript:
    """The cells of one kernel that run, wait to run, or were not shown by any page since."""

    def __init__(self) -> None:
        """No cell yet."""
        self.cells: dict[str, Cell] = {}

    @classmethod
    def of(cls, text: str, running: list[str]) -> Transcript:
        """Those of a text that `as_text` gave which still run. Raises ValueError for another text."""
        found = cls()
        for one in json.loads(text):
            cell = Cell(one["request"], one["cell"], one["code"], owner="")
            for message in one["messages"]:
                cell.add(message, len(json.dumps(message)))
            if (id := one["request"]["msg_id"]) in running:
                found.cells[id] = cell
        return found

    def as_text(self) -> str:
        """What is to be kept with a kernel that is parked; empty if no cell runs."""
        running = [cell.as_json() for cell in self.cells.values() if not cell.done]
        return json.dumps(running) if running else ""

    def begin(self, request: dict[str, Any], cell: str, code: str) -> None:
        """A page has asked for a cell to be run."""
        done = {id: known.size for id, known in self.cells.items() if known.done}  # and no page may ever come
        for id in list(done):
            if sum(done.values()) > KEPT:
                done.pop(id)
                del self.cells[id]
        self.cells[request["msg_id"]] = Cell(request, cell, code, owner=request.get("session", ""))

    def hear(self, channel: str, message: dict[str, Any], size: int) -> Cell | None:
        """The kernel said something; the cell of which it said it."""
        cell = self.cells.get((message["parent_header"] or {}).get("msg_id", ""))
        if cell is None or cell.done:
            return None
        cell.add({key: message[key] for key in PARTS} | {"channel": channel}, size)
        kind = message["header"]["msg_type"]
        cell.done = kind == "status" and message["content"]["execution_state"] == "idle"
        return cell

    def answered(self) -> None:
        """A person has given the line that the kernel asked for."""
        for cell in self.cells.values():
            cell.messages = [message for message in cell.messages if message["channel"] != "stdin"]

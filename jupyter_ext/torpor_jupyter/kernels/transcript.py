"""The messages of a kernel about the cells that it runs, kept for a page that connects later.

Jupyter itself keeps them only for a page that reconnects to the same server with its old session. A reloaded page has a
new session, and so has every page on the next server.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from jupyter_client.jsonutil import json_default

KEPT = 4 << 20
"""The most bytes of messages to keep for one cell, and for all cells that are done. The oldest are dropped first."""
PARTS = ("header", "parent_header", "metadata", "content")
TORPOR = "torpor"
"""The session of messages that Torpor sends in the kernel's place."""


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
    taken_up: bool = False
    """Whether a server that was killed has sent it: then it may have ended since."""
    count: int | None = None
    """Its execution count, once the kernel has reported it."""
    dropped: int = 0
    """How many messages were dropped to stay below the limit."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def add(self, message: dict[str, Any], size: int) -> None:
        """Keep a message, with its channel."""
        if message["header"]["msg_type"] == "execute_input":
            self.count = message["content"].get("execution_count")
        self.messages.append(message | {"size": size})
        self.size += size
        while self.size > KEPT and len(self.messages) > 1:
            self.size -= self.messages.pop(0)["size"]
            self.dropped += 1

    def add_all(self, later: Cell) -> None:
        """Add the messages of another record of the same cell, which was begun later."""
        known = {message["header"]["msg_id"] for message in self.messages}
        for message in later.messages:
            if message["header"]["msg_id"] not in known:
                self.add(message, message["size"])
        self.owner, self.taken_up, self.done = later.owner, later.taken_up, self.done or later.done

    def tell(self, text: str) -> None:
        """Add a message of Torpor's to its output."""
        self._say("stream", {"name": "stderr", "text": text})

    def end(self) -> None:
        """Mark a cell as done whose end was not received."""
        self._say("status", {"execution_state": "idle"})
        self.done = True

    def _say(self, kind: str, content: dict[str, Any]) -> None:
        header = {
            "msg_id": uuid4().hex, "msg_type": kind, "session": TORPOR, "username": TORPOR, "version": "5.3",
            "date": datetime.now(timezone.utc),
        }  # fmt: skip
        message = {"header": header, "parent_header": self.request, "metadata": {}, "content": content}
        self.add(message | {"channel": "iopub"}, len(_json(message)))

    def as_json(self) -> dict[str, Any]:
        """The cell as JSON for the REST API."""
        answer: dict[str, Any] = json.loads(_json(self.known()))
        return answer

    def known(self) -> dict[str, Any]:
        """A copy of what is known about the cell; later messages do not change it."""
        messages = [{key: message[key] for key in (*PARTS, "channel")} for message in self.messages]
        known = {"request": self.request, "cell": self.cell, "code": self.code, "done": self.done}
        return known | {"dropped": self.dropped, "messages": messages}


class Transcript:
    """The cells of one kernel that run, wait to run, or have ended while no page showed them."""

    def __init__(self) -> None:
        """Begin without cells."""
        self.cells: dict[str, Cell] = {}
        self.changes = 0
        """How often the cells have changed."""

    @classmethod
    def of(cls, text: str) -> Transcript:
        """Read a text of `as_text`; the pages of its cells have gone. Empty for a text of another version."""
        found = cls()
        try:
            for one in json.loads(text or "[]"):
                cell = Cell(one["request"], one["cell"], one["code"], "", one["done"], dropped=one["dropped"])
                for message in one["messages"]:
                    cell.add(message, len(json.dumps(message)))
                found.cells[one["request"]["msg_id"]] = cell
        except (KeyError, TypeError, ValueError):
            return cls()
        return found

    def known(self) -> list[dict[str, Any]]:
        """A copy of what is known about the cells; later messages do not change it."""
        return [cell.known() for cell in self.cells.values()]

    def as_text(self) -> str:
        """The cells as text, to keep with a parked kernel; empty if there are none."""
        return as_text(self.known())

    def put_before(self, earlier: Transcript) -> None:
        """Insert an earlier transcript before this one; messages in both are kept once."""
        self.changes += 1
        for id, cell in earlier.cells.items():
            if known := self.cells.pop(id, None):
                cell.add_all(known)
        self.cells = earlier.cells | self.cells

    @property
    def running(self) -> list[Cell]:
        """The cells that have not ended, oldest first."""
        return [cell for cell in self.cells.values() if not cell.done]

    def forget(self, id: str) -> None:
        """Forget a cell: a page shows it."""
        if self.cells.pop(id, None):
            self.changes += 1

    def forget_running(self, but: Collection[str]) -> None:
        """Forget the cells that have not ended, except those with these ids."""
        for cell in self.running:
            if (id := cell.request["msg_id"]) not in but:
                self.forget(id)

    def begin(self, request: dict[str, Any], cell: str, code: str) -> None:
        """Record a cell that a page has asked the kernel to run."""
        self.changes += 1
        done = {id: known.size for id, known in self.cells.items() if known.done}  # a page for them may never come
        for id in list(done):
            if sum(done.values()) > KEPT:
                done.pop(id)
                del self.cells[id]
        self.cells[request["msg_id"]] = Cell(request, cell, code, owner=request.get("session", ""))

    def add_message(self, channel: str, message: dict[str, Any], size: int) -> Cell | None:
        """Keep a message of the kernel. Return the cell that it belongs to; None if no such cell still runs."""
        cell = self.cells.get((message["parent_header"] or {}).get("msg_id", ""))
        if cell is None or cell.done:
            return None
        self.changes += 1
        cell.add({key: message[key] for key in PARTS} | {"channel": channel}, size)
        kind = message["header"]["msg_type"]
        cell.done = kind == "status" and message["content"]["execution_state"] == "idle"
        return cell

    def answered(self) -> None:
        """Drop the kernel's requests for input: a user has entered the line."""
        self.changes += 1
        for cell in self.cells.values():
            cell.messages = [message for message in cell.messages if message["channel"] != "stdin"]


def as_text(known: list[dict[str, Any]]) -> str:
    """Cells as text, which `Transcript.of` reads; empty if there are none."""
    return _json(known) if known else ""


def _json(value: object) -> str:
    return json.dumps(value, default=json_default)

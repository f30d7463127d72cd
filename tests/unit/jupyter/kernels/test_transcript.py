"""What a kernel says of cells is kept for a page that comes, and only so much of it."""

from __future__ import annotations

from typing import Any

import pytest

from torpor_jupyter.kernels import transcript
from torpor_jupyter.kernels.transcript import Transcript


def message(kind: str, parent: str | None = "one", **content: Any) -> dict[str, Any]:
    header = {"msg_type": kind, "msg_id": f"{kind}-{parent}"}
    return {"header": header, "parent_header": parent and {"msg_id": parent}, "metadata": {}, "content": content}


def begun() -> Transcript:
    said = Transcript()
    said.begin({"msg_id": "one", "session": "page"}, "cell-1", "x = input()")
    return said


def test_a_cell_is_heard_until_it_is_done() -> None:
    said = begun()
    assert said.add_message("iopub", message("stream", "other", text="no"), 1) is None
    assert said.add_message("iopub", message("iopub_welcome", None), 1) is None
    cell = said.add_message("iopub", message("status", execution_state="busy"), 1)
    assert cell and not cell.done
    said.add_message("iopub", message("stream", text="1"), 1)
    said.add_message("iopub", message("status", execution_state="idle"), 1)
    assert cell.done and said.add_message("iopub", message("stream", text="late"), 1) is None
    told = cell.as_json()
    assert (told["cell"], told["done"], told["dropped"]) == ("cell-1", True, 0)
    assert [m["header"]["msg_type"] for m in told["messages"]] == ["status", "stream", "status"]


def test_a_question_that_was_answered_is_asked_no_more() -> None:
    said = begun()
    said.add_message("stdin", message("input_request", prompt="?"), 1)
    assert [m["channel"] for m in said.cells["one"].messages] == ["stdin"]
    said.answered()
    assert said.cells["one"].messages == []


def test_of_a_cell_that_says_too_much_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "KEPT", 100)
    said = begun()
    for number in range(10):
        said.add_message("iopub", message("stream", text=str(number)), 30)
    told = said.cells["one"].as_json()
    assert [m["content"]["text"] for m in told["messages"]] == ["7", "8", "9"] and told["dropped"] == 7


def test_of_cells_that_nobody_comes_for_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "KEPT", 100)
    said = begun()
    for number in range(5):
        said.begin({"msg_id": str(number)}, "", "")
        said.add_message("iopub", message("status", str(number), execution_state="idle"), 40)
    said.begin({"msg_id": "last"}, "", "")
    assert list(said.cells) == ["one", "3", "4", "last"]


def test_the_next_server_has_what_nobody_has_seen() -> None:
    said = begun()
    said.begin({"msg_id": "two", "session": "page"}, "cell-2", "done")
    said.add_message("iopub", message("execute_input", execution_count=3), 1)
    said.add_message("iopub", message("status", "two", execution_state="idle"), 1)
    next_one = Transcript.of(said.as_text())
    assert [(id, cell.done, cell.count, cell.owner) for id, cell in next_one.cells.items()] == [
        ("one", False, 3, ""), ("two", True, None, ""),
    ]  # fmt: skip
    assert next_one.as_text() == said.as_text()
    next_one.forget_running(but=["two"])
    assert list(next_one.cells) == ["two"]
    next_one.forget("two")
    assert next_one.as_text() == "" and Transcript.of("").cells == {}


def test_what_changes_is_counted() -> None:
    said = begun()
    counts = [said.changes]
    for change in (
        lambda: said.add_message("iopub", message("stream", text="1"), 1),
        said.answered,
        lambda: said.forget("one"),
    ):
        change()
        counts.append(said.changes)
    assert counts == [1, 2, 3, 4]
    said.forget("one")
    assert said.changes == 4


def test_an_end_that_nobody_has_heard_is_told() -> None:
    said = begun()
    cell = said.cells["one"]
    known = cell.known()
    cell.tell("lost\n")
    cell.end()
    told = cell.as_json()
    assert told["done"] and [m["content"] for m in told["messages"]] == [
        {"name": "stderr", "text": "lost\n"}, {"execution_state": "idle"},
    ]  # fmt: skip
    for part in told["messages"]:
        assert part["parent_header"]["msg_id"] == "one" and part["header"]["session"] == "torpor"
    assert known["messages"] == [], "what was told before does not change"

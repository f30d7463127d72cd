"""Requests wait while a gate is shut, in their order; those that the kernel never got are told so."""

from __future__ import annotations

from typing import Any

from torpor_jupyter.kernels.gate import Gate


class Browser:
    """Writes down what it is told."""

    has_gone = False

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.replies: list[tuple[str, dict[str, Any]]] = []
        self.aborted: list[str] = []

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        if incoming_msg == "nonsense":
            raise ValueError
        self.sent.append(incoming_msg)

    def send_reply(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        self.replies.append((header["msg_id"], content))

    def abort_cell(self, message: Any) -> bool:
        if message == "nonsense":
            raise ValueError
        if cell := message.startswith("cell"):
            self.aborted.append(message)
        return bool(cell)

    def abort(self, header: dict[str, Any]) -> None:
        self.aborted.append(header["msg_id"])


def request(id: str, kind: str = "execute_request") -> dict[str, Any]:
    return {"msg_id": id, "msg_type": kind}


def test_requests_go_on_in_their_order_when_the_last_hold_is_given_up() -> None:
    gate, browser = Gate(), Browser()
    with gate.hold():
        with gate.hold():
            gate.waiting += [(browser, "one"), (browser, "two")]
        assert browser.sent == []
    assert browser.sent == ["one", "two"] and gate.waiting == []


def test_nonsense_holds_nobody_up() -> None:
    gate, browser = Gate(), Browser()
    with gate.hold():
        gate.waiting += [(browser, "one"), (browser, "nonsense"), (browser, "two")]
    assert browser.sent == ["one", "two"] and gate.waiting == []


def test_an_idle_kernel_has_answered_those_who_have_gone() -> None:
    gate, gone, there = Gate(), Browser(), Browser()
    gone.has_gone = True
    gate.unanswered = {"one": (gone, request("one")), "two": (there, request("two"))}
    gate.started = {"one": 1.0, "two": 2.0}
    gate.forget_gone()
    assert list(gate.unanswered) == list(gate.started) == ["two"]


def test_a_hold_that_fails_is_given_up() -> None:
    gate = Gate()
    try:
        with gate.hold():
            raise ValueError
    except ValueError:
        pass
    assert gate.shut == 0


def test_what_still_runs_is_not_aborted() -> None:
    gate, browser = Gate(), Browser()
    gate.unanswered = {id: (browser, request(id)) for id in ("runs", "unheard")}
    gate.started = {"runs": 1.0, "unheard": 2.0}
    gate.abort_unanswered({"runs"})
    assert browser.aborted == ["unheard"]
    assert list(gate.unanswered) == list(gate.started) == ["runs"]


def test_a_reply_that_the_kernel_dropped_is_given() -> None:
    gate, browser = Gate(execution_count=4), Browser()
    gate.unanswered = {id: (browser, request(id)) for id in ("dropped", "unheard")}
    gate.uncertain = {"dropped": {"status": "error", "ename": "E"}}
    gate.answer_for_kernel("dropped")
    assert browser.replies == [("dropped", {"execution_count": 5, "status": "error", "ename": "E"})]
    assert browser.aborted == ["unheard"]
    assert (gate.unanswered, gate.uncertain, gate.execution_count) == ({}, {}, 5)


def test_of_another_request_only_the_end_is_told() -> None:
    gate, browser = Gate(), Browser()
    gate.unanswered = {"info": (browser, request("info", "kernel_info_request"))}
    gate.uncertain = {"info": {"status": "ok"}}
    gate.answer_for_kernel("info")
    assert browser.aborted == ["info"] and gate.execution_count == 0


def test_a_kernel_that_is_started_again_runs_no_cell_of_before() -> None:
    gate, browser = Gate(shut=1, cell="x = 1", execution_count=3, cells_sent=3), Browser()
    gate.unanswered["runs"] = (browser, request("runs"))
    gate.started["runs"] = 1.0
    gate.waiting += [(browser, "cell one"), (browser, "nonsense"), (browser, "info"), (browser, "cell two")]
    gate.begin_anew()
    assert browser.aborted == ["runs", "cell one", "cell two"]
    assert (gate.unanswered, gate.started, gate.cell, gate.execution_count, gate.cells_sent) == ({}, {}, "", 0, 0)
    gate.open()
    assert browser.sent == ["info"]

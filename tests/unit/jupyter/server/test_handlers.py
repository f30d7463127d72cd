"""The OpenAPI description of the REST API says what the handlers have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tornado import web

from tests.api import description
from torpor_jupyter.server.handlers import HANDLERS, BadRequest, TorporHandler

METHODS = ("get", "post", "put", "patch", "delete")


def described() -> set[tuple[str, str]]:
    """Path and method of each request that is described."""
    return {(path, method) for path, known in description()["paths"].items() for method in known if method in METHODS}


def test_every_request_is_described_and_every_described_one_is_there() -> None:
    there = set()
    for pattern, handler in HANDLERS:
        path = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"{\1}", pattern)
        path = path.replace(r"\.", ".")
        there |= {(path, method) for method in METHODS if method in vars(handler)}
    assert there == described()


def test_every_reference_leads_somewhere() -> None:
    text = repr(description())
    for reference in set(re.findall(r"'\$ref': '#/([^']+)'", text)):
        found = description()
        for part in reference.split("/"):
            found = found[part]
        assert found


def body(monkeypatch: pytest.MonkeyPatch, found: Any) -> dict[str, Any]:
    """What a handler makes of a request's body."""

    def read(handler: TorporHandler) -> Any:
        return found if isinstance(found, dict) else found.decode()

    monkeypatch.setattr(TorporHandler, "get_json_body", read)
    return TorporHandler.__new__(TorporHandler).body(name=str)


def test_a_body_that_cannot_be_shown_is_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("two\nlines\tand more", "مرحبا", "👩\u200d💻"):
        assert body(monkeypatch, {"name": name}) == {"name": name}
    for bad in (b"\xff", {"name": "a\0b"}, {"name": "\x1b[31m"}, {"name": "\u202egnp.exe"}, {"name": "\ud800"}):
        with pytest.raises(BadRequest):
            body(monkeypatch, bad)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (web.HTTPError(404, "%s is outside root", "x"), 404, "x is outside root"),
        (web.HTTPError(403), 403, "Forbidden"),
        (OSError("disk"), 500, "an unexpected error"),
        (None, 405, "an unexpected error"),
    ],
)
def test_errors_of_others_have_the_same_form(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, status: int, message: str
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(TorporHandler, "set_header", lambda handler, *header: None)
    monkeypatch.setattr(TorporHandler, "finish", lambda handler, answer: sent.append(answer))
    handler = TorporHandler.__new__(TorporHandler)
    handler.write_error(status, **({"exc_info": (type(error), error, None)} if error else {}))
    (answer,) = sent
    assert answer.keys() == set(description()["components"]["schemas"]["Error"]["required"])
    assert answer["reason"] == message and answer["kind"] and answer["advice"]

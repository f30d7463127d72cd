"""The OpenAPI description of the REST API says what the handlers have."""

from __future__ import annotations

import re

from tests.api import description
from torpor_jupyter.server.handlers import HANDLERS

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

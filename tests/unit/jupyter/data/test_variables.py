"""Two listings of a kernel's variables: what is new, gone and changed, with as little guessing as possible."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torpor.errors import StoreError
from torpor_jupyter.data.variables import Changed, Listing


def listing(*variables: list[Any], process: str = "one") -> Listing:
    return Listing(json.dumps([process, list(variables)]))


def names(found: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    return {kind: [variable["name"] for variable in variables] for kind, variables in found.items()}


def never(_address: int, _size: int) -> bool:
    raise AssertionError("the memory was compared")


def same(_address: int, _size: int) -> bool:
    return False


def other(_address: int, _size: int) -> bool:
    return True


X, Y = ["x", "int", "1", 5, None], ["y", "str", "'a'", 6, None]


def test_new_and_gone() -> None:
    assert names(listing(X).since(listing(Y), never)) == {"added": ["x"], "removed": ["y"], "changed": []}
    (told,) = listing(X).since(listing(), never)["added"]
    assert told == {"name": "x", "type": "int", "summary": "1"}


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (X, False),
        (["x", "float", "1", 5, None], True),
        (["x", "int", "2", 5, None], True),
        (["x", "int", "1", 7, None], True),
        (["x", "int", "1", None, None], False),
    ],
    ids=["the same", "type", "value", "mark", "no time for a mark"],
)
def test_changed(now: list[Any], changed: bool) -> None:
    assert names(listing(now).since(listing(X), never))["changed"] == ["x"] * changed


def test_in_another_process_marks_and_addresses_mean_nothing() -> None:
    before = listing(["x", "int", "1", 5, [[4096, 8]]], process="another")
    assert names(listing(["x", "int", "1", 9, [[8192, 8]]]).since(before, never))["changed"] == []


@pytest.mark.parametrize(
    ("places", "memory", "changed"),
    [
        ([[4096, 8], [8192, 8]], same, False),
        ([[4096, 8], [8192, 8]], other, True),
        ([[4096, 8]], never, True),
        (None, never, True),
    ],
    ids=["the same bytes", "other bytes", "shorter", "no array any more"],
)
def test_arrays_are_compared_in_memory(places: list[list[int]] | None, memory: Changed, changed: bool) -> None:
    before = listing(["a", "ndarray", "2", None, [[4096, 8], [8192, 8]]])
    now = listing(["a", "ndarray", "2", None, places])
    assert names(now.since(before, memory))["changed"] == ["a"] * changed


@pytest.mark.parametrize("text", ["", "{", "7", '["p"]', '["p", [["x"]]]', '["p", [["x", "int", "1", 5, 7]]]'])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        Listing(text)

"""Check arguments that must be one of a few words."""

from __future__ import annotations

from typing import Any, get_args


def check(argument: str, value: object, words: Any) -> None:
    """Raise ValueError if the value of an argument is not one of these words (a `typing.Literal`).

    Python does not enforce annotations. A misspelt word would match no comparison and silently choose the default case:
    a tree that should be killed would run on.
    """
    if value not in get_args(words):
        raise ValueError(f"{argument}={value!r}: it is one of {', '.join(map(repr, get_args(words)))}")

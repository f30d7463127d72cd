"""The arguments of a planned system call."""

from __future__ import annotations

from torpor.remote.batch import Argument


def numbers(*arguments: Argument) -> list[int]:
    """Those that are plain numbers; any other fails the test."""
    plain = [one for one in arguments if isinstance(one, int)]
    assert len(plain) == len(arguments), f"not all are numbers: {arguments}"
    return plain

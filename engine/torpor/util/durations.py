"""Time spans as people write them: 90, 90s, 10m, 1h30m, 7d."""

from __future__ import annotations

import re
from typing import Final

UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
MOST: Final = 366 * UNITS["d"]
"""Seconds."""
LONGEST: Final = 32
"""Characters."""
_SPAN: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", re.ASCII)


def written(span: float) -> str:
    """A time span as `seconds` reads it: whole seconds in the largest units."""
    words, rest = "", int(span)
    for unit, size in UNITS.items():
        count, rest = divmod(rest, size)
        words += f"{count}{unit}" if count else ""
    return words or "0s"


def seconds(text: str) -> float:
    """Parse a time span. Raises ValueError for zero, for more than a year, and for other text."""
    if len(text) > LONGEST:
        raise ValueError(f"{text[:LONGEST]!r}... is too long a time span")
    found = _SPAN.fullmatch(text)
    sum_ = found and sum(int(n) * unit for n, unit in zip(found.groups(), UNITS.values(), strict=True) if n)
    if not sum_:
        raise ValueError(f"{text!r} is not a time span like 90s, 10m or 1h30m")
    if sum_ > MOST:
        raise ValueError(f"{text!r} is longer than a year")
    return float(sum_)

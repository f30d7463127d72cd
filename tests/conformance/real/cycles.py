"""The programs' side: the same work again and again, until there was enough of it.

A program works in cycles. Each begins from the same state and ends in one line, which must be the same every time;
what serves them (workers, servers, connections) lives on from cycle to cycle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

HERE = Path(os.environ["CONFORM_DIR"])


def digest(*parts: object) -> str:
    """A short word for what was computed."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def repeat(cycle: Callable[[], object]) -> None:
    """Run cycles and write the line of each, until the file `enough` is there."""
    while not (HERE / "enough").exists():
        line = cycle()
        with open(HERE / "lines", "a") as lines:
            lines.write(f"{line}\n")

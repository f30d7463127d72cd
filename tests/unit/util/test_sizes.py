"""Sizes for people: the unit changes where the number would have five digits."""

from __future__ import annotations

import pytest

from torpor.util.sizes import readable


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        (4 << 30, "4.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_a_size_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert readable(size) == text

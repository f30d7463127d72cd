"""What every transport checks."""

from __future__ import annotations

import pytest

from torpor.sets.transport import check_numbers, too_long


def test_numbers_of_parts() -> None:
    check_numbers(0, 1)
    check_numbers(4095, 4096)
    with pytest.raises(ValueError, match="part 1 of 1"):
        check_numbers(1, 1)


def test_too_much_to_say() -> None:
    assert "this part has 2000000 bytes" in too_long(2_000_000).message

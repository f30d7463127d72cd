"""Time spans as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.util import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1d", 86400), ("0h1s", 1), ("366d", 366 * 86400)),
        *(("1d2h3m4s", 93784), ("1h30", 3630), ("007", 7)),
    ],
)
def test_what_is_one(text: str, seconds: float) -> None:
    assert durations.seconds(text) == seconds
    assert durations.seconds(durations.written(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0s", "m", "1m1h", "-1", "+1", "1.5h", "ten", "nan", "inf", "1e300", "9" * 30, "367d", "9" * 5000),
        *(" 1", "1 ", "1\n", "1 h", "1H", "1h1h", "\u0661h", "1_000", "365d24h1s" + "9" * 9, "1w", "5ms", "\0"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"time span|longer than a year"):
        durations.seconds(text)


def test_a_message_is_short_and_names_what_was_given() -> None:
    with pytest.raises(ValueError) as long:
        durations.seconds("9" * 10**6)
    assert len(str(long.value)) < 100
    with pytest.raises(ValueError, match=r"'1\.5h' is not a time span like 90s, 10m or 1h30m"):
        durations.seconds("1.5h")


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_the_parts_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert durations.seconds(f"{days}d{hours}h{minutes}m{seconds}s") == total
    assert durations.seconds(f"{days}d{hours}h{minutes}m{seconds}") == total


@given(st.text("0123456789dhms.-+ e", max_size=40))
def test_any_text_is_a_time_or_an_error_in_words(text: str) -> None:
    try:
        assert 0 < durations.seconds(text) <= durations.MOST
    except ValueError as error:
        assert repr(text[: durations.LONGEST]) in str(error) or repr(text) in str(error)

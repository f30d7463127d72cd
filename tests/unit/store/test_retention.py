"""What a prune keeps: by number, by period, by age."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.store import SnapshotInfo
from torpor.store.retention import Retention


def taken(*moments: str) -> list[SnapshotInfo]:
    """Snapshots of these moments of local time, oldest first; the moment is the id."""
    return [
        SnapshotInfo(when, "/store", created_ns=int(datetime.fromisoformat(when).timestamp()) * 10**9)
        for when in moments
    ]


DAYS = taken(
    "2026-01-30T08:00",
    "2026-01-30T20:00",
    "2026-01-31T09:00",
    "2026-02-01T09:10",  # a Sunday
    "2026-02-01T09:50",
    "2026-02-02T00:10",
    "2026-02-02T01:00",
    "2026-02-02T01:05",
)


def kept(infos: list[SnapshotInfo], **what: float) -> list[str]:
    found = Retention(**what).kept(infos)  # type: ignore[arg-type]
    return [info.id for info in infos if info.id in found]


@pytest.mark.parametrize(
    ("what", "ids"),
    [
        ({"last": 0}, []),
        ({"last": 2}, ["2026-02-02T01:00", "2026-02-02T01:05"]),
        ({"hourly": 1}, ["2026-02-02T01:05"]),
        ({"hourly": 3}, ["2026-02-01T09:50", "2026-02-02T00:10", "2026-02-02T01:05"]),
        ({"daily": 2}, ["2026-02-01T09:50", "2026-02-02T01:05"]),
        ({"daily": 4}, ["2026-01-30T20:00", "2026-01-31T09:00", "2026-02-01T09:50", "2026-02-02T01:05"]),
        # More days than there are: the oldest one stays until there are enough.
        (
            {"daily": 9},
            ["2026-01-30T08:00", "2026-01-30T20:00", "2026-01-31T09:00", "2026-02-01T09:50", "2026-02-02T01:05"],
        ),
        ({"weekly": 2}, ["2026-02-01T09:50", "2026-02-02T01:05"]),
        ({"monthly": 2}, ["2026-01-31T09:00", "2026-02-02T01:05"]),
        ({"within": 3600}, ["2026-02-02T00:10", "2026-02-02T01:00", "2026-02-02T01:05"]),
        ({"within": 0}, ["2026-02-02T01:05"]),
        ({"last": 1, "monthly": 2}, ["2026-01-31T09:00", "2026-02-02T01:05"]),
        ({"last": 3, "daily": 1}, ["2026-02-02T00:10", "2026-02-02T01:00", "2026-02-02T01:05"]),
    ],
)
def test_what_is_kept(what: dict[str, float], ids: list[str]) -> None:
    assert kept(DAYS, **what) == ids


def test_the_last_week_of_a_year_is_one_week() -> None:
    infos = taken("2026-12-27T10:00", "2026-12-31T10:00", "2027-01-01T10:00")
    assert kept(infos, weekly=1) == ["2027-01-01T10:00"]
    assert kept(infos, weekly=2) == ["2026-12-27T10:00", "2027-01-01T10:00"]


def test_something_must_be_kept() -> None:
    with pytest.raises(ValueError, match="nothing says"):
        Retention()
    with pytest.raises(ValueError, match="0 or more"):
        Retention(1, weekly=-1)


def test_of_nothing_nothing_is_kept() -> None:
    assert Retention(1, 1, 1, 1, 1, 1).kept([]) == set()


@given(st.lists(st.integers(0, 10**6)), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**5))
def test_a_prune_again_removes_nothing_more(seconds: list[int], last: int, hourly: int, within: int) -> None:
    """And the newest one stays, whatever is kept, unless that is nothing."""
    now = int(time.time())
    infos = [SnapshotInfo(f"{n:06}", "/store", created_ns=(now + s) * 10**9) for n, s in enumerate(sorted(seconds))]
    retention = Retention(last, hourly, within=within)
    first = [info for info in infos if info.id in retention.kept(infos)]
    assert [info for info in first if info.id in retention.kept(first)] == first
    assert first[-1:] == infos[-1:]

"""Which snapshots a prune keeps: the newest ones, and the last one of each hour, day, week or month."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from torpor.store.manifest import SnapshotInfo

_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    "hourly": lambda when: (when.year, when.month, when.day, when.hour),
    "daily": lambda when: (when.year, when.month, when.day),
    "weekly": lambda when: tuple(when.isocalendar())[:2],
    "monthly": lambda when: (when.year, when.month),
}
"""The number of the period that a moment lies in. A week begins on Monday (ISO 8601)."""


@dataclass(frozen=True)
class Retention:
    """What to keep. A snapshot is kept if any of these keeps it; None: this one keeps nothing."""

    last: int | None = None
    """The newest so many."""
    hourly: int | None = None
    """The newest of each hour, for the last so many hours that have any. By the clock, in local time."""
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    within: float | None = None
    """All that are at most so many seconds older than the newest one."""

    def __post_init__(self) -> None:
        given = [value for value in vars(self).values() if value is not None]
        if not given:
            raise ValueError("nothing says which snapshots to keep")
        if min(given) < 0:
            raise ValueError("what to keep is a number of snapshots or seconds, 0 or more")

    def kept(self, infos: Sequence[SnapshotInfo]) -> set[str]:
        """The ids that are kept of `infos`, which are in the order of their age, oldest first.

        While there are fewer periods than are to be kept, the oldest snapshot is kept, too: it is the last one of a
        period that has begun before.
        """
        newest_first = infos[::-1]
        found = {info.id for info in newest_first[: self.last or 0]}
        if self.within is not None and newest_first:
            oldest = newest_first[0].created_ns - self.within * 10**9
            found |= {info.id for info in infos if info.created_ns >= oldest}
        for name, period_of in _PERIODS.items():
            left = getattr(self, name) or 0
            before: tuple[int, ...] | None = None
            for info in newest_first:
                period = period_of(datetime.fromtimestamp(info.created_ns / 10**9))
                if left and (period != before or info is infos[0]):
                    found.add(info.id)
                    before = period
                    left -= 1
        return found

"""Union, intersection, difference and splitting of sorted lists of address ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

Range = tuple[int, int]
"""Start and end, bytes."""


def union(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and merge those that overlap or touch."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def intersection(left: Sequence[Range], right: Sequence[Range]) -> list[Range]:
    """Return the intersection of two sorted lists."""
    found: list[Range] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i][0], right[j][0])
        end = min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def subtract(ranges: Iterable[Range], holes: Sequence[Range]) -> list[Range]:
    """Return the ranges without the holes; both lists are sorted."""
    found: list[Range] = []
    first = 0
    for start, end in ranges:
        position = start
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        for k in range(first, len(holes)):
            hole_start, hole_end = holes[k]
            if hole_start >= end:
                break
            if position < hole_start:
                found.append((position, hole_start))
            position = max(position, hole_end)
        if position < end:
            found.append((position, end))
    return found


def split(ranges: Iterable[Range], at: Iterable[Range]) -> list[Range]:
    """Split ranges at the borders of other ranges, which are sorted and do not touch each other."""
    borders = list(chain.from_iterable(at))
    found: list[Range] = []
    for start, end in ranges:
        inside = borders[bisect_right(borders, start) : bisect_left(borders, end)]
        found += pairwise((start, *inside, end))
    return found

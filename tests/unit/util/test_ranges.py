"""Ranges of addresses, held against sets of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from torpor.util.ranges import Range, intersection, split, subtract, union

ANY = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))), max_size=8)


def numbers(ranges: Iterable[Range]) -> list[int]:
    """All that ranges cover, as often as they do."""
    return sorted(number for start, end in ranges for number in range(start, end))


def joined(of: set[int]) -> list[Range]:
    """The longest ranges of a set of numbers."""
    starts = sorted(number for number in of if number - 1 not in of)
    ends = sorted(number + 1 for number in of if number + 1 not in of)
    return list(zip(starts, ends, strict=True))


SORTED = st.sets(st.integers(0, 24)).map(joined)
"""Sorted, and none touches another."""


@given(ANY)
def test_union(ranges: list[Range]) -> None:
    assert [one for one in union(ranges) if one[0] < one[1]] == joined(set(numbers(ranges)))


@given(SORTED, SORTED)
def test_intersection(left: list[Range], right: list[Range]) -> None:
    assert intersection(left, right) == joined(set(numbers(left)) & set(numbers(right)))


@given(SORTED, SORTED)
def test_subtract(ranges: list[Range], holes: list[Range]) -> None:
    assert subtract(ranges, holes) == joined(set(numbers(ranges)) - set(numbers(holes)))


@given(SORTED, SORTED)
def test_split(ranges: list[Range], at: list[Range]) -> None:
    """Nothing is lost, every border inside is one, and no other."""
    pieces = split(ranges, at)
    assert all(start < end for start, end in pieces)
    assert numbers(pieces) == numbers(ranges)
    borders = {border for one in at for border in one}
    cuts = {end for (_, end), (start, _) in pairwise(pieces) if end == start}
    assert cuts == {border for border in borders for start, end in ranges if start < border < end}


def test_ranges_that_touch_stay_apart_in_a_difference() -> None:
    """Two mappings beside each other are two, whatever is taken from them."""
    assert subtract([(0, 2), (2, 4)], [(1, 2), (4, 6)]) == [(0, 1), (2, 4)]
    assert subtract([(0, 2), (2, 4)], [(1, 3)]) == [(0, 1), (3, 4)]

"""What a restore needs beside the plan: descriptors for closed ones, and its progress."""

from __future__ import annotations

import os

from tests.leaks import no_more_descriptors
from torpor.restorer.restore import _progress, _stand_ins


def test_closed_descriptors_have_stand_ins_for_a_while() -> None:
    closed = os.dup(0)
    os.close(closed)
    with no_more_descriptors(), _stand_ins((0, closed)) as given:
        assert given[0] == 0
        assert os.path.samefile(f"/proc/self/fd/{given[1]}", os.devnull)


def test_the_progress_ends_with_the_whole() -> None:
    told: list[tuple[int, int]] = []
    add = _progress(10, lambda *now: told.append(now))
    assert add is not None
    for size in (4, 5, 6):
        add(size)
    assert told == [(4, 10), (9, 10), (10, 10)]
    assert _progress(10, None) is None

"""Tables of calls for blank processes: cut so that each fits into its place, and failures in words."""

from __future__ import annotations

import errno
import os
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.remote import blank
from torpor.remote.batch import NOT_RUN, Batch, Call, Out, Struct
from torpor.remote.blank import PidTaken, Task, Work

TASK = Task(7, "process 7", array("Q"))
NAMES = st.binary(max_size=300)
ARGUMENTS = st.one_of(
    st.integers(-5, 1 << 62),
    NAMES,
    st.integers(0, 500).map(Out),
    st.binary(min_size=16, max_size=200).map(lambda content: Struct(content, (0,))),
)
CALLS = st.lists(st.lists(ARGUMENTS, max_size=6).map(lambda args: Call(NR.getpid, args, None, "a call")), max_size=60)


def encoded(calls: list[Call]) -> int:
    """The size of a table of these calls as a blank process gets it."""
    batch = Batch()
    for call in calls:
        batch.add(call.nr, *call.args)
    batch.add(NR.getpid, stop=True)
    return len(batch.encode(1 << 20))


@given(CALLS)
def test_a_table_is_never_larger_than_it_is_said_to_be(calls: list[Call]) -> None:
    """What lies behind it belongs to others."""
    assert encoded(calls) <= blank.table_size(calls)


@given(CALLS, st.integers(1500, 5000))
def test_parts_fit_and_have_all_calls_in_their_order(calls: list[Call], room: int) -> None:
    parts = [list(part) for part in blank._parts(Work(TASK, calls, 0, room))]
    assert [call for part in parts for call in part] == calls
    assert all(encoded(part) <= room or len(part) == 1 for part in parts)
    assert [] not in parts


def test_a_table_has_no_more_entries_than_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blank, "_MAX_ENTRIES", 3)
    calls = [Call(NR.getpid, (), None, "") for _ in range(7)]
    assert [len(part) for part in blank._parts(Work(TASK, calls, 0))] == [3, 3, 1]


def test_a_failure_names_the_task_the_step_and_the_reason() -> None:
    step = Call(NR.mmap, (1, 2), 0, "mapping the heap")
    cases = {
        -errno.ENOMEM: os.strerror(errno.ENOMEM),
        NOT_RUN: "was not reached",
        0x7F00: "gave 0x7f00",
    }
    for result, why in cases.items():
        error = blank.failure(TASK, step, result)
        assert (type(error), error.message) == (RestoreFailed, f"process 7: mapping the heap: {why}")
    taken = blank.failure(TASK, Call(NR.clone3, (), None, "creating process 9"), -errno.EEXIST)
    assert isinstance(taken, PidTaken)

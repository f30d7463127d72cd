"""A woken task is bound to the processors of the new allocation that stand where its own stood in the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from subprocess import PIPE, Popen

import pytest

from torpor_slurm.rebinding import rebind

OLD = [0, 1, 2, 3]


@pytest.fixture
def task() -> Iterator[Popen[bytes]]:
    """A task that has the second half of its job's processors."""
    child = Popen(["cat"], env={**os.environ, "TORPOR_STEP_BOUND": "2,3"}, stdin=PIPE)
    assert child.stdin
    with child:
        yield child
        child.stdin.close()


@pytest.mark.parametrize(
    ("here", "woken", "bound"),
    [
        ({8, 9, 10, 11}, {8, 9, 10, 11}, {10, 11}),
        ({1, 2, 3, 4}, {2, 3}, {3, 4}),
        ({3, 4, 5, 6}, {3}, {5, 6}),
        ({0, 1, 2, 3}, {2, 3}, None),
        ({1, 2, 3, 4}, {2}, None),
        (set(range(16)), {2, 3}, set(range(16))),
    ],
    ids=["others", "one more", "half", "the same", "its own choice", "not confined"],
)
def test_tasks_keep_their_share(
    monkeypatch: pytest.MonkeyPatch, task: Popen[bytes], here: set[int], woken: set[int], bound: set[int] | None
) -> None:
    done: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: woken if pid == task.pid else here)
    monkeypatch.setattr(os, "sched_setaffinity", done.__setitem__)
    rebind(task.pid, OLD, 4)
    assert done == ({} if bound is None else {task.pid: bound})


def test_nothing_is_known_of_a_job_that_an_older_version_has_saved(task: Popen[bytes]) -> None:
    before = os.sched_getaffinity(task.pid)
    rebind(task.pid, [], 4)
    assert os.sched_getaffinity(task.pid) == before

"""Building a tree: how work is cut and ordered, and what stops a process again. The kernel is not asked."""

from __future__ import annotations

import errno
import os
import signal
from array import array
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.restorer.test_plan import CHILD, ROOT, plan, tree
from torpor.arch.x86_64 import NR
from torpor.errors import RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.process.birth_order import Member
from torpor.remote.batch import Call
from torpor.remote.blank import Task, Work, table_size
from torpor.restorer import execution, surroundings
from torpor.restorer.built import Built, image_of
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.execution import Builder
from torpor.restorer.plan import ProcessPlan, ThreadPlan


def task(tid: int) -> Task:
    return Task(tid, f"task {tid}", array("Q"))


def call(number: int) -> Call:
    return Call(NR.getpid, (number,), None, f"call {number}")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """A builder of a process with a child, whose tasks have the numbers of the image. It runs nothing."""
    here = surroundings.here(Setting(Namespaces.PID | Namespaces.USER | Namespaces.MOUNT))
    made = Builder(plan(tree(), here), os.getpid(), 0)
    for process in made.plan.processes:
        tids = [thread.image.tid for thread in process.threads] or [process.member.pid]
        made.processes[process.member.pid] = Built(process, list(map(task, tids)))
    return made


@pytest.fixture
def runs(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> list[list[Work]]:
    """What was run together."""
    found: list[list[Work]] = []
    monkeypatch.setattr(builder._blanks, "run", found.append)
    return found


def test_a_stand_in_has_an_empty_image(builder: Builder) -> None:
    stand_in = Built(ProcessPlan(Member(7, None, None)), [task(7)])
    assert image_of(stand_in) == pb.Process()
    assert image_of(builder.processes[ROOT]).pid == ROOT


@pytest.mark.parametrize("tables", [1, 2, 9])
def test_tables_of_the_threads_of_a_process_lie_side_by_side_or_run_one_after_the_other(
    builder: Builder, runs: list[list[Work]], tables: int
) -> None:
    room = table_size([call(0)] * 100)
    place = builder._blanks.tables = range(0x1000, 0x1000 + tables * (room + 16))
    for pid in (ROOT, CHILD):
        for thread in builder.processes[pid].plan.threads:
            thread.calls = [call(0)] * 100
    builder._settle([builder.processes[ROOT], builder.processes[CHILD]])
    together = [[work.task.tid for work in works] for works in runs]
    cut = [[ROOT], [ROOT + 1000, CHILD], [CHILD + 1000]]
    assert together == (cut if tables == 1 else [[ROOT, ROOT + 1000, CHILD, CHILD + 1000]])
    for works in runs:
        for at, work in enumerate(works):
            assert place.start <= work.address and work.address + work.room <= place.stop
            others = [one for one in works[:at] if work.task.tid - one.task.tid == 1000]
            assert all(one.address + one.room <= work.address for one in others)


def test_a_table_is_never_larger_than_its_place(builder: Builder, runs: list[list[Work]]) -> None:
    """As with tens of thousands of queued signals, which is as many as a user may have."""
    root = builder.processes[ROOT]
    signal_of = Call(NR.rt_sigqueueinfo, (ROOT, 40, bytes(128)), 0, "a pending signal")
    root.plan.threads[0].calls = [signal_of] * 60_000
    builder._settle([root])
    for works in runs:
        assert all(work.address + work.room <= builder._blanks.tables.stop for work in works)


def test_children_that_were_stopped_are_so_before_their_parents_settle(
    builder: Builder, runs: list[list[Work]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(builder, "_settle", lambda them: said.extend(("settle", one.plan.member.pid) for one in them))
    monkeypatch.setattr(builder, "_unmap_scratch", lambda them: None)
    monkeypatch.setattr(builder, "_stop", lambda one: said.append(("stop", one.plan.member.pid)))
    for pid in (ROOT, CHILD):
        image_of(builder.processes[pid]).stopped = True
    builder.settle()
    assert said[:4] == [("settle", CHILD), ("stop", CHILD), ("settle", ROOT), ("stop", ROOT)]


@pytest.mark.parametrize(
    ("number", "handler", "parents", "again"),
    [
        (signal.SIGSTOP, 0, {}, signal.SIGSTOP),
        (signal.SIGTSTP, 0, {}, signal.SIGSTOP),  # its group is orphaned: the signal would do nothing
        (signal.SIGTSTP, 0, {CHILD: (ROOT, 8, 1)}, signal.SIGTSTP),
        (signal.SIGTTIN, 1, {CHILD: (ROOT, 8, 1)}, signal.SIGSTOP),  # its handler would run instead
        (signal.SIGTTOU, 0, {CHILD: (ROOT, ROOT, 1)}, signal.SIGSTOP),  # a parent in the same group
        (signal.SIGTSTP, 0, {CHILD: (ROOT, 8, 2)}, signal.SIGSTOP),  # a parent in another session
    ],
)
def test_a_process_is_stopped_by_a_signal_that_stops_it(
    builder: Builder,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    handler: int,
    parents: Mapping[int, tuple[int, int, int]],
    again: int,
) -> None:
    """The parent's pid, group and session are those of the shell that the kernel would look at."""

    def stat(tid: int) -> SimpleNamespace:
        above, group, session = parents.get(CHILD, (0, 0, 0))
        if tid == CHILD:
            return SimpleNamespace(ppid=above, pgrp=ROOT, session=1)
        return SimpleNamespace(ppid=0, pgrp=group if tid == ROOT else 0, session=session if tid == ROOT else 0)

    monkeypatch.setattr(execution, "procfs", SimpleNamespace(stat=stat))
    process = builder.processes[CHILD]
    image_of(process).stop_signal = number
    image_of(process).actions.add(signal=number, handler=handler)
    assert builder._stop_signal(process) == again


def test_init_closes_all_but_its_end_of_the_pipe() -> None:
    last = (1 << 32) - 1
    assert [one.args for one in execution._close_all(-1)] == [(0, last, 0)]
    assert [one.args for one in execution._close_all(9)] == [(0, 8, 0), (10, last, 0)]


def test_a_stand_in_stands_for_its_first_child_that_stays() -> None:
    gone, stays = Member(3, None, None, only_group=True), Member(4, None, None)
    for children, found in (([], 0), ([gone], 0), ([gone, stays], 4)):
        assert execution._stands_for(Built(ProcessPlan(Member(2, None, None, children=children)), [])) == found


@pytest.fixture
def time_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Each sleep takes as long as it says, and no time."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    yield now


def refusing(times: int) -> Callable[..., Any]:
    """An open() that is refused so many times as autogroup is."""

    def fake(path: str, mode: str) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return open(os.devnull, mode)

    return fake


def test_a_write_that_the_host_allows_others_first_is_made_again(
    time_passes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Built(ProcessPlan(Member(7, None, None)), [task(7)])
    monkeypatch.setattr(execution, "open", refusing(10), raising=False)
    execution._write_proc(process, "autogroup", "5")
    monkeypatch.setattr(execution, "open", refusing(10**6), raising=False)
    with pytest.raises(RestoreFailed, match="the stand-in for process 7: writing 5 to its autogroup: Resource temp"):
        execution._write_proc(process, "autogroup", "5")
    assert time_passes[0] < 120


def test_a_file_that_may_not_be_written_is_named() -> None:
    process = Built(ProcessPlan(Member(7, None, None)), [task(os.getpid())])
    with pytest.raises(RestoreFailed, match="writing 5 to its nothing: No such file or directory"):
        execution._write_proc(process, "nothing", "5")


def test_registers_that_are_none_are_a_failure_in_words() -> None:
    """Of a task that has ended, or of an image that was changed."""
    registers = array("Q", bytes(27 * 8)).tobytes()
    thread = ThreadPlan(pb.Thread(registers=registers, xstate=bytes(576)), [], [])
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(RestoreFailed, match=f"task {child}: setting its registers: No such process"):
        execution._set_state(task(child), thread)

"""Attributes of a whole process: those of prctl(2) come back, and those of files only as far as the restorer may."""

from __future__ import annotations

import pytest

from tests.unit.objects.process.inside import described, restored
from torpor.arch.x86_64 import NR
from torpor.image import image_pb2 as pb
from torpor.objects.part import Stage
from torpor.objects.process import process_attributes
from torpor.objects.process.process_attributes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_THP_DISABLE,
    Inherited,
    OomScores,
    ProcessAttributes,
    ProcFiles,
)
from torpor.remote.sys import syscall

ATTRIBUTES, FILES = ProcessAttributes(), ProcFiles()
PRIVATE_EXPEDITED = 8


def test_attributes_come_back() -> None:
    def change() -> None:
        syscall(NR.prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        syscall(NR.prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0)
        syscall(NR.membarrier, PRIVATE_EXPEDITED << 1, 0, 0)
        syscall(NR.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)

    plain, image = described(ATTRIBUTES, lambda: None), described(ATTRIBUTES, change)
    assert (image.child_subreaper, image.thp_disable, image.dumpable) == (True, True, 0)
    assert image.membarriers & PRIVATE_EXPEDITED << 1
    assert (plain.child_subreaper, plain.dumpable, plain.membarriers) == (False, 1, 0)
    assert restored(ATTRIBUTES, image) == image
    assert restored(ATTRIBUTES, plain) == plain


def test_where_the_kernel_does_not_tell_barriers_each_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_attributes, "_tells_registrations", lambda: False)

    def register() -> None:
        syscall(NR.membarrier, PRIVATE_EXPEDITED << 1, 0, 0)

    assert described(ATTRIBUTES, register).membarriers & PRIVATE_EXPEDITED << 1
    assert not described(ATTRIBUTES, lambda: None).membarriers & PRIVATE_EXPEDITED << 1


def test_what_the_restorer_has_and_the_process_had_not_is_taken_back() -> None:
    process = pb.Process(dumpable=2)
    calls = list(ATTRIBUTES.calls(process, Inherited(thp_disable=True, memory_merge=True)))
    assert [step.call.args[:2] for step in calls] == [
        (PR_SET_THP_DISABLE, 0),
        (process_attributes.PR_SET_MEMORY_MERGE, 0),
        (PR_SET_DUMPABLE, 0),
    ]
    assert calls[-1].stage == Stage.AFTER_CREDENTIALS, "a change of ids would reset it"


def test_memory_that_was_not_merged_is_excluded_again() -> None:
    process = pb.Process(memory_merge=True)
    for start, advice in ((1 << 20, [process_attributes.MADV_MERGEABLE]), (2 << 20, [])):
        process.memory.vmas.add(start=start, end=start + 4096, kind=pb.Vma.ANONYMOUS, advice=advice)
    process.memory.vmas.add(start=3 << 20, end=4 << 20, kind=pb.Vma.SHARED)
    steps = ATTRIBUTES.calls(process, Inherited(thp_disable=False, memory_merge=False))
    excluded = [step.call.args for step in steps if step.call.nr == NR.madvise]
    assert excluded == [(2 << 20, 4096, process_attributes.MADV_UNMERGEABLE)]


@pytest.mark.parametrize(
    ("score", "host", "written", "told"),
    [
        (500, OomScores(0, may_lower=False), True, False),
        (0, OomScores(500, may_lower=False), False, True),
        (0, OomScores(500, may_lower=True), True, False),
        (0, OomScores(0, may_lower=False), False, False),
    ],
)
def test_an_oom_score_is_lowered_only_by_who_may(score: int, host: OomScores, written: bool, told: bool) -> None:
    process = pb.Process(oom_score_adj=score, coredump_filter=0x33)
    files = dict(FILES.files(process, host))
    assert files.pop("coredump_filter") == "0x33"
    assert files == ({"oom_score_adj": str(score)} if written else {})
    assert bool(list(FILES.warnings(process, host))) == told

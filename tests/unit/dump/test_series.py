"""What a series remembers of the last snapshot, and when it forgets."""

from __future__ import annotations

import os

import pytest

from tests.leaks import no_more_descriptors
from tests.unit.remote.test_written import Memory
from tests.unit.store.store_content import random_blocks
from torpor.arch.x86_64 import NR
from torpor.dump.series import Key, Series
from torpor.image import image_pb2 as pb
from torpor.procfs import PAGE
from torpor.remote.sys import syscall
from torpor.remote.userfaultfd import OPEN_FLAGS
from torpor.remote.written import Private, WriteWatch
from torpor.store import KnownBlocks, Store


def userfaultfd() -> int:
    try:
        return syscall(NR.userfaultfd, OPEN_FLAGS)
    except OSError as error:
        pytest.skip(f"this kernel notes no writes: {error}")


def published(store: Store, memory: Memory) -> tuple[KnownBlocks, pb.PageTable]:
    """A snapshot of two pages of this process."""
    table = pb.PageTable()
    with store.writer("tree") as saver:
        blocks = saver.add_blocks(memoryview(b"".join(random_blocks(2, PAGE))), [PAGE, PAGE])
        saver.publish(b"", "")
        for page, block in zip((0, 2), blocks, strict=True):
            table.starts.append(memory.start // PAGE + page)
            table.counts.append(1)
            table.blocks.append(block)
        return saver.known(), table


def me() -> Key:
    return Key(os.getpid(), 7)


def test_only_what_was_written_since_is_new(store: Store) -> None:
    memory = Memory(4)
    memory.write(0)
    memory.write(2)
    with no_more_descriptors(), Series() as series:
        assert series.lacks(me()) and not series.has(me()) and series.known(store.path) is None
        series.watch(me(), WriteWatch(userfaultfd()), [memory.private])
        assert not series.lacks(me())
        assert series.look({me(): [memory.private]}, again=True) == {}, "there is no snapshot yet"
        known, table = published(store, memory)
        series.note(store.path, known, {me(): table})
        assert series.has(me()) and series.known(store.path) is known and series.known("/elsewhere") is None
        memory.write(2)
        (before,) = series.look({me(): [memory.private]}, again=True).values()
        assert memory.pages([*before.written]) == {2}
        assert list(before.table.starts) == list(table.starts)


def test_a_snapshot_that_failed_is_no_base(store: Store) -> None:
    """A look takes the notes away: what was written before it is known to that checkpoint alone."""
    memory = Memory(4)
    with Series() as series:
        series.watch(me(), WriteWatch(userfaultfd()), [memory.private])
        known, table = published(store, memory)
        series.note(store.path, known, {me(): table})
        assert series.look({me(): [memory.private]}, again=True)
        assert not series.has(me()) and series.known(store.path) is None
        assert series.look({me(): [memory.private]}, again=True) == {}


def test_processes_that_are_gone_are_not_watched_any_more(store: Store) -> None:
    memory = Memory(4)
    with no_more_descriptors(), Series() as series:
        series.watch(me(), WriteWatch(userfaultfd()), [memory.private])
        assert series.look({}, again=True) == {}
        assert series.lacks(me())


def test_what_is_not_watched_is_not_remembered(store: Store) -> None:
    memory = Memory(4)
    with Series() as series:
        known, table = published(store, memory)
        series.note(store.path, known, {me(): table})
        assert not series.has(me())
        assert series.look({me(): [Private(*memory.range, False)]}, again=True) == {}


def test_a_closed_series_is_like_a_new_one(store: Store) -> None:
    memory = Memory(4)
    with no_more_descriptors():
        series = Series()
        series.watch(me(), WriteWatch(userfaultfd()), [memory.private])
        known, table = published(store, memory)
        series.note(store.path, known, {me(): table})
        series.close()
        series.close()
        assert series.lacks(me()) and not series.has(me()) and series.known(store.path) is None

"""Checkpoints of one job, one after the other: what was not written since the last one is not read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from torpor.image import image_pb2 as pb
from torpor.objects.memory.incremental import Before, Columns
from torpor.procfs import PAGE
from torpor.remote.written import Private, WriteWatch
from torpor.store import BlockTable, KnownBlocks
from torpor.util.ranges import Range


class Key(NamedTuple):
    """Which process: PIDs are used again."""

    pid: int
    start_time: int
    """Clock ticks after boot."""


@dataclass
class _Last:
    """The last snapshot of a series."""

    store: str
    known: KnownBlocks
    tables: dict[Key, Columns]


class Series:
    """To be given to each `checkpoint` of one job; a context manager, to be closed when no more will follow.

    Between two checkpoints the kernel notes which pages the job writes (see remote/written.py), so that the next one
    reads, hashes and stores only those. Every snapshot of a series is whole, and stands for itself. Closing it, or the
    end of the process that has it, takes nothing from the job and leaves nothing in it.

    Where Linux is older than 6.7, and while another series of the same job is open, each checkpoint reads all.
    """

    def __init__(self) -> None:
        self._watches: dict[Key, WriteWatch] = {}
        self._last: _Last | None = None

    def __enter__(self) -> Series:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop watching. May be called again; the series can be used as a new one."""
        self._last = None
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def known(self, store: str) -> KnownBlocks | None:
        """The blocks of the last snapshot, if it lies in that store."""
        return self._last.known if self._last and self._last.store == store else None

    def has(self, key: Key) -> bool:
        """Whether a process is in the last snapshot."""
        return self._last is not None and key in self._last.tables

    def lacks(self, key: Key) -> bool:
        """Whether a process is not watched yet."""
        return key not in self._watches

    def watch(self, key: Key, userfaultfd: int, mappings: Sequence[Range]) -> None:
        """Begin to watch a frozen process, before its memory is read for the first time.

        Args:
            key: the process.
            userfaultfd: of its memory, the series' own from now on.
            mappings: its private mappings, by address.
        """
        try:
            watch = WriteWatch(userfaultfd)
        except OSError:
            return  # a kernel without asynchronous write protection: everything counts as written
        if watch.begin(key.pid, mappings):
            self._watches[key] = watch
        else:
            watch.close()

    def look(self, processes: Mapping[Key, Sequence[Private]], *, again: bool) -> dict[Key, Before]:
        """What is known of a frozen tree from the last snapshot. It is told once: a checkpoint that fails begins anew.

        To be asked before its memory is read or forked: what somebody else writes into it in between is then in this
        snapshot perhaps, and counts as written at the next look surely.

        Args:
            processes: the private mappings of each.
            again: another checkpoint will follow, which is to know what was written from now on.
        """
        last, self._last = self._last, None
        for key in self._watches.keys() - processes.keys():
            self._watches.pop(key).close()
        retired = last.known.retire() if last else frozenset()
        found: dict[Key, Before] = {}
        for key, mappings in processes.items():
            if key not in self._watches:
                continue
            try:
                written = self._watches[key].look(key.pid, mappings, again=again)
            except ProcessLookupError:  # another program now
                self._watches.pop(key).close()
                continue
            if last and key in last.tables:
                table = last.tables[key]
                found[key] = Before(table, [*written, *_within(table, last.known.table, retired)])
        return found

    def note(self, store: str, known: KnownBlocks, tables: Mapping[Key, pb.PageTable]) -> None:
        """Remember a snapshot that was published, of which `look` was told that another follows."""
        watched = {key: Columns.of(table) for key, table in tables.items() if key in self._watches}
        self._last = _Last(store, known, watched)


def _within(table: Columns, blocks: BlockTable, packs: Set[int]) -> Iterator[Range]:
    """What of a page table lies in some packs."""
    if packs:
        for start, count, block in zip(*table, strict=True):
            if blocks.packs[block] in packs:
                yield start * PAGE, (start + count) * PAGE

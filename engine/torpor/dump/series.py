"""Successive checkpoints of one job: memory that was not written since the last one is not read again."""

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
    """The identity of a process; a PID alone may be reused."""

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
    """Pass the same Series to each `checkpoint` of one job. A context manager; close it after the last checkpoint.

    Between two checkpoints the kernel notes which pages the job writes (see remote/written.py), and the next checkpoint
    reads, hashes and stores only those. Every snapshot of a series is whole and does not depend on the others. Closing
    the series, or the end of the process that holds it, does not affect the job.

    Before Linux 6.7, and while another series of the same job is open, each checkpoint reads all memory.
    """

    def __init__(self) -> None:
        self._watches: dict[Key, WriteWatch] = {}
        self._last: _Last | None = None

    def __enter__(self) -> Series:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching the job. May be called again; afterwards the series can be used like a new one."""
        self._last = None
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def known(self, store: str) -> KnownBlocks | None:
        """Return the blocks of the last snapshot if it is in this store, else None."""
        return self._last.known if self._last and self._last.store == store else None

    def has(self, key: Key) -> bool:
        """Return whether a process is in the last snapshot."""
        return self._last is not None and key in self._last.tables

    def lacks(self, key: Key) -> bool:
        """Return whether a process is not watched yet."""
        return key not in self._watches

    def watch(self, key: Key, watch: WriteWatch, mappings: Sequence[Private]) -> None:
        """Begin to watch a frozen process, before its memory is read for the first time.

        Args:
            key: the process.
            watch: of its memory; the series owns it from now on.
            mappings: its private mappings, by address.
        """
        if watch.begin(key.pid, mappings):
            self._watches[key] = watch
        else:
            watch.close()

    def look(self, processes: Mapping[Key, Sequence[Private]], *, again: bool) -> dict[Key, Before]:
        """Return what the last snapshot has of a frozen tree, and what was written since.

        This forgets the last snapshot: if this checkpoint fails, the next one reads everything.

        Call it before the memory is read or forked. If another process writes to the memory in between, this snapshot
        may have the write or not, but the next `look` reports it in any case.

        Args:
            processes: the private mappings of each process.
            again: note writes from now on, since another checkpoint will follow.
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
            except ProcessLookupError:  # it has called execve
                self._watches.pop(key).close()
                continue
            if last and key in last.tables:
                table = last.tables[key]
                blocks = last.known.table
                found[key] = Before(table, [*written, *_within(table, blocks, retired)], blocks.lengths)
        return found

    def note(self, store: str, known: KnownBlocks, tables: Mapping[Key, pb.PageTable]) -> None:
        """Remember a published snapshot, if `look` was called with `again` for it."""
        watched = {key: Columns.of(table) for key, table in tables.items() if key in self._watches}
        self._last = _Last(store, known, watched)


def _within(table: Columns, blocks: BlockTable, packs: Set[int]) -> Iterator[Range]:
    """Yield the ranges of a page table whose blocks are in some packs."""
    if packs:
        for start, count, block in zip(table.starts, table.counts, table.blocks, strict=True):
            if blocks.packs[block] in packs:
                yield start * PAGE, (start + count) * PAGE

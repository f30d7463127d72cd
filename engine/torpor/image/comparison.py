"""Compare two snapshots of process trees: which processes, memory, descriptors and open files differ.

Memory is compared by the hashes of blocks; only blocks that differ are read, and then page by page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torpor.image.image_pb2 import Description, PageTable, Process, Tree
from torpor.image.page_tables import pieces
from torpor.image.reading import look, require_tree
from torpor.store import Progress, SnapshotReader


@dataclass(frozen=True)
class MemoryChange:
    """How the memory of a process, or shared memory, differs between two snapshots: bytes, in whole pages."""

    before: int = 0
    after: int = 0
    changed: int = 0
    """At addresses that both snapshots hold, with different content."""
    came: int = 0
    """At addresses that only the later one holds: before, they were zero, as in the mapped file, or not mapped."""
    went: int = 0


@dataclass(frozen=True)
class FileChange:
    """A file that is open by the same descriptor in both snapshots, but whose position or size differs."""

    path: bytes
    position: tuple[int, int]
    """Before and after, in bytes."""
    size: tuple[int, int]


@dataclass(frozen=True)
class ProcessChange:
    """A process that has the same PID in both snapshots."""

    before: Process
    after: Process
    memory: MemoryChange
    opened: Mapping[int, Description]
    """By descriptor. One that refers to another object now counts as closed and as opened."""
    closed: Mapping[int, Description]
    files: tuple[FileChange, ...]


@dataclass(frozen=True)
class Comparison:
    """How a later snapshot differs from an earlier one."""

    before: Tree
    after: Tree
    came: tuple[Process, ...]
    went: tuple[Process, ...]
    both: tuple[ProcessChange, ...]
    shared: MemoryChange
    """The sum over all shared memory."""


def compare(before: SnapshotReader, after: SnapshotReader, progress: Progress | None = None) -> Comparison:
    """Compare two open snapshots of process trees.

    Args:
        before: the earlier one.
        after: the later one.
        progress: called with the bytes of memory compared and in total.

    Raises:
        ImageDamaged: one of them is of another kind, or damaged.
        StoreError: the store cannot be read.
    """
    for reader in (before, after):
        require_tree(reader)
    trees = look(before), look(after)
    was, now = ({process.pid: process for process in tree.processes} for tree in trees)
    memory = _Memory((before, after), trees, progress)
    segments = [_segments(tree) for tree in trees]
    return Comparison(
        *trees,
        came=tuple(process for pid, process in now.items() if pid not in was),
        went=tuple(process for pid, process in was.items() if pid not in now),
        both=tuple(_process(was[pid], now[pid], trees, memory) for pid in now if pid in was),
        shared=_sum(
            memory.compare(segments[0].get(key, PageTable()), segments[1].get(key, PageTable()))
            for key in segments[0].keys() | segments[1].keys()
        ),
    )


def _sum(changes: Iterator[MemoryChange]) -> MemoryChange:
    totals: Counter[str] = Counter()
    for change in changes:
        totals.update(vars(change))
    return MemoryChange(**totals)


def _segments(tree: Tree) -> dict[tuple[int, bytes, int], PageTable]:
    """Shared memory by kind, name, and position among those with the same kind and name."""
    count: Counter[tuple[int, bytes]] = Counter()
    found: dict[tuple[int, bytes, int], PageTable] = {}
    for segment in tree.shared:
        called = (int(segment.kind), segment.name)
        key = (*called, count[called])
        found[key] = segment.pages
        count[called] += 1
    return found


def _process(before: Process, after: Process, trees: tuple[Tree, Tree], memory: _Memory) -> ProcessChange:
    was, now = (
        {fd.fd: tree.descriptions[fd.description] for fd in process.fds if fd.description < len(tree.descriptions)}
        for process, tree in zip((before, after), trees, strict=True)
    )
    same = {fd for fd in was.keys() & now.keys() if _object(was[fd]) == _object(now[fd])}
    files = {
        FileChange(b.path, (a.position, b.position), (a.size, b.size))
        for a, b in ((was[fd].file, now[fd].file) for fd in same if now[fd].WhichOneof("kind") == "file")
        if (a.position, a.size) != (b.position, b.size)
    }
    return ProcessChange(
        before,
        after,
        memory.compare(before.memory.pages, after.memory.pages),
        opened={fd: now[fd] for fd in sorted(now.keys() - same)},
        closed={fd: was[fd] for fd in sorted(was.keys() - same)},
        files=tuple(sorted(files, key=lambda file: file.path)),
    )


def _object(description: Description) -> tuple[object, ...]:
    """What identifies the object behind a descriptor in another snapshot."""
    kind = description.WhichOneof("kind")
    value = getattr(description, kind) if kind else None
    names = ("path", "local", "remote", "state", "name", "pid", "protocol")
    return (kind, *(getattr(value, name, None) for name in names if kind not in ("unix", "outside")))


class _Memory:
    """Compares page tables of two snapshots."""

    def __init__(
        self, readers: tuple[SnapshotReader, SnapshotReader], trees: tuple[Tree, Tree], progress: Progress | None
    ) -> None:
        self._readers = readers
        self._page = trees[1].host.page_size
        self._progress = progress
        self._done = 0
        self._total = sum(map(_count, _tables(*trees))) * self._page
        self._last: list[tuple[int, bytes]] = [(-1, b""), (-1, b"")]

    def compare(self, before: PageTable, after: PageTable) -> MemoryChange:
        sizes = _count(before), _count(after)
        both = changed = 0
        for was, now, count in _together(before, after):
            both += count
            if self._hash(0, was[0]) != self._hash(1, now[0]) or was[1] != now[1]:
                changed += self._differing(was, now, count)
        self._done += sizes[1] * self._page
        if self._progress:
            self._progress(min(self._done, self._total), self._total)
        pages = {
            "before": sizes[0],
            "after": sizes[1],
            "changed": changed,
            "came": sizes[1] - both,
            "went": sizes[0] - both,
        }
        return MemoryChange(**{name: count * self._page for name, count in pages.items()})

    def _hash(self, side: int, block: int) -> bytes:
        self._readers[side].block(block)  # raises if there is none
        return self._readers[side].blocks.hash(block)

    def _differing(self, was: tuple[int, int], now: tuple[int, int], count: int) -> int:
        """Count the pages that differ in two runs; each begins at (block, page in it)."""
        size = self._page
        here, there = (
            self._content(side, block)[page * size : (page + count) * size]
            for side, (block, page) in enumerate((was, now))
        )
        if here == there:
            return 0
        return sum(here[at : at + size] != there[at : at + size] for at in range(0, max(len(here), len(there)), size))

    def _content(self, side: int, block: int) -> bytes:
        if self._last[side][0] != block:
            self._last[side] = block, self._readers[side].read_block(block)
        return self._last[side][1]


def _tables(before: Tree, after: Tree) -> Iterator[PageTable]:
    """The page tables of the later tree that are compared: a new process has none to be compared with."""
    pids = {process.pid for process in before.processes}
    yield from (process.memory.pages for process in after.processes if process.pid in pids)
    yield from (segment.pages for segment in after.shared)


def _count(table: PageTable) -> int:
    return sum(table.counts)


def _together(before: PageTable, after: PageTable) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """Yield the runs of pages that both tables have: the start in each (block, page in it), and the number of pages."""
    was, now = sorted(pieces(before)), sorted(pieces(after))
    a = b = 0
    while a < len(was) and b < len(now):
        (start, count, block, skip), (first, many, other, omitted) = was[a], now[b]
        begin, end = max(start, first), min(start + count, first + many)
        if begin < end:
            yield (block, skip + begin - start), (other, omitted + begin - first), end - begin
        if start + count <= first + many:
            a += 1
        else:
            b += 1

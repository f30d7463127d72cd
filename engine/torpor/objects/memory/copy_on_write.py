"""Private memory that processes have shared since a fork. It is filled once, in their common ancestor.

A child shares its parent's memory copy-on-write. So a process with children first gets, at each address, the content
that most of its descendants have, in mappings that cover those of all of them. The children inherit these. Each process
keeps an inherited mapping if some of its pages are right, drops and overwrites the wrong ones, and maps the rest anew.

The image shows what is shared: a page of one block at one address in two processes that run the same program since the
same execve. Different blocks are compared page by page, since written pages are mostly few and scattered.

Not shared: stacks that grow, huge pages of hugetlbfs, memory that mremap(2) has moved in one process, and what would
need more memory before the births than this host has.

Documented in: fork(2), Documentation/mm/process_addrs.rst (copying of VMAs), madvise(2) on MADV_DONTFORK.
"""

from __future__ import annotations

import mmap
import resource
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import add, le
from typing import NamedTuple

from torpor import procfs
from torpor.image import image_pb2 as pb
from torpor.image.page_tables import Piece
from torpor.objects.memory import vdso, vmas
from torpor.objects.memory.address_space import INIT
from torpor.objects.memory.incremental import BLOCK_PAGES, Columns
from torpor.objects.process.birth_order import Member
from torpor.procfs import PAGE
from torpor.store import BlockTable
from torpor.util.ranges import Range, intersection, subtract, union

Peek = Callable[[int, int, int], bytes]
"""Returns a part of a block as it is stored, not verified. Arguments: block, offset and size in bytes."""
MOST_HULLS = 4096
"""The most mappings to pass on: a process may not have many more than 65530 in all (vm.max_map_count)."""
WORTH = 8
"""For this many pages that are filled before the births, by a single thread, at least one page must be saved."""
_TRIES, _SAMPLE = 64, 16
"""After this many comparisons without an equal page only every 16th block is compared."""
_COMPARED = 256
"""The number of pieces of blocks that a comparison caches."""

_Pages = tuple[Piece, ...]
"""The pages in an aligned range of the size of a block."""
_Content = dict[int, _Pages]
"""The pages of a mapping: by page number / BLOCK_PAGES."""


class Room(NamedTuple):
    """How much may be mapped before the births, in bytes."""

    mapping: int
    """In one mapping: the kernel refuses a fork with an accounted mapping larger than all memory (dup_mmap)."""
    process: int
    """By one process."""
    tree: int | None
    """By all of them together; None if the host does not limit it."""


def room() -> Room:
    """The limits of this process and host."""
    host = procfs.status(procfs.read("/proc/meminfo"))
    limits = (resource.getrlimit(number)[0] for number in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    given = min((limit // 2 for limit in limits if limit != resource.RLIM_INFINITY), default=1 << 62)
    tree = None
    if procfs.read("/proc/sys/vm/overcommit_memory").strip() == b"2":
        tree = int(host[b"CommitLimit"].split()[0]) - int(host[b"Committed_AS"].split()[0]) << 10
    return Room(int(host[b"MemTotal"].split()[0]) << 10, given, tree)


@dataclass
class Share:
    """What one process has of the memory that is passed on."""

    hulls: list[pb.Vma] = field(default_factory=list)
    """The mappings that are passed from process to process. Each covers those of several processes."""
    first: bool = False
    """Whether this process creates them."""
    heirs: frozenset[int] = frozenset()
    """The children, by birth, that inherit them."""
    given: list[Piece] = field(default_factory=list)
    """What it fills before it has children."""
    kept: list[Range] = field(default_factory=list)
    """The inherited mappings that are its own, by address. It unmaps the others when its children are born."""
    stale: list[Range] = field(default_factory=list)
    """Ranges of the `kept` mappings with inherited pages, where it has none itself."""
    left: list[Piece] = field(default_factory=list)
    """What must still be written to the `kept` mappings."""


def find(
    top: Member, image: pb.Tree, blocks: BlockTable, here: vdso.Vdso, space: Room, peek: Peek | None
) -> dict[int, Share]:
    """Find memory that processes share. Returns, by PID, what each process has or passes on.

    Args:
        top: the tree in its order of births.
        image: the tree.
        blocks: the locations of blocks.
        here: this host's vDSO.
        space: how much may be mapped.
        peek: reads blocks to compare their pages; None: different blocks count as different.
    """
    members = {member.pid: member for member in top.walk()}
    tables = {one.pid: Columns.of(one.memory.pages) for one in image.processes if not one.zombie}
    shares: dict[int, Share] = {}
    for alike in _same_execve(image, tables, blocks):
        line = _Line.of([members[process.pid] for process in alike])
        if shares.keys().isdisjoint(line.order):
            shares |= _shares_of(line, alike, tables, here, space, _Comparison(peek))
    return shares


def remaining_pages(share: Share, table: pb.PageTable) -> Iterator[Piece]:
    """The pages of a process that are filled when all processes are born."""
    columns = Columns.of(table)
    at = 0
    for start, end in share.kept:
        yield from columns.pieces(at, start // PAGE)
        at = end // PAGE
    yield from columns.pieces(at, 1 << 64) if share.kept else map(Piece, *columns)
    yield from share.left


_Tables = Mapping[int, Columns]
"""The page tables of processes, by PID."""


def _same_execve(image: pb.Tree, tables: _Tables, blocks: BlockTable) -> list[list[pb.Process]]:
    """Groups of processes that run one program since one execve; the group with the most pages comes first.

    Only execve sets the auxiliary vector and the start of the stack, so these tell one execve from another.
    """
    alike: dict[tuple[bytes, int], list[pb.Process]] = defaultdict(list)
    for process in image.processes:
        if not process.zombie and _is_sound(tables[process.pid], blocks):
            alike[process.memory.auxv, process.memory.start_stack].append(process)
    found = [group for group in alike.values() if len(group) > 1]
    return sorted(found, key=lambda group: -sum(sum(tables[one.pid].counts) for one in group))


def _is_sound(table: Columns, blocks: BlockTable) -> bool:
    """Whether a page table is as a checkpoint writes it. If not, filling pages from it reports the error."""
    starts, counts, numbers, skips = table
    return (
        bool(starts)
        and max(numbers) < len(blocks)
        and min(counts) > 0
        and all(map(le, map(add, starts, counts), starts[1:]))
        and all(map(le, map(PAGE.__mul__, map(add, skips, counts)), map(blocks.lengths.__getitem__, numbers)))
    )


@dataclass
class _Line:
    """A part of the tree: from a common ancestor to all processes that inherit from it."""

    order: dict[int, Member]
    """Parents first."""
    heirs: dict[int, list[int]]
    """For each, the children that inherit or pass on."""

    @classmethod
    def of(cls, members: Sequence[Member]) -> _Line:
        """The smallest part that contains these."""
        below: dict[int, int] = defaultdict(int)
        top = members[0]
        for member in members:
            above: Member | None = member
            while above is not None:
                below[above.pid] += 1
                above = above.parent
        while below[top.pid] < len(members):
            assert top.parent
            top = top.parent
        order = {member.pid: member for member in top.walk() if member.pid in below}
        heirs = {pid: [child.pid for child in one.children if child.pid in below] for pid, one in order.items()}
        return cls(order, heirs)


# ------------------------------------------------------------------------------------------- mappings

_Kind = tuple[pb.Vma.Kind, int, int, bool]
"""What must be equal in two mappings to merge them: kind, object, offset at address 0, MAP_NORESERVE."""


def _kind(vma: pb.Vma) -> _Kind:
    number = {pb.Vma.FILE_PRIVATE: vma.file, pb.Vma.MEMORY_PRIVATE: vma.shared}.get(vma.kind, 0)
    return vma.kind, number, 0 if vma.kind == pb.Vma.ANONYMOUS else vma.offset - vma.start, vma.noreserve


def _candidates(process: pb.Process, starts: Sequence[int], here: vdso.Vdso) -> list[pb.Vma]:
    """The mappings of a process that have pages and can be inherited."""
    taken = union([INIT, *vdso.places(process.memory, here)])
    found: list[pb.Vma] = []
    for vma in process.memory.vmas:
        if vma.kind in vmas.PRIVATE and not (vma.grows_down or vma.huge_page or vma.droppable):
            filled = bisect_left(starts, vma.end // PAGE) - bisect_left(starts, vma.start // PAGE)
            if filled and not intersection([(vma.start, vma.end)], taken):
                found.append(vma)
    return found


def _hulls(found: Iterable[pb.Vma], most: int) -> list[pb.Vma]:
    """Mappings that cover those of several processes, by address. If different kinds overlap, the larger wins."""
    kinds: dict[_Kind, list[Range]] = defaultdict(list)
    for vma in found:
        kinds[_kind(vma)].append((vma.start, vma.end))
    wide = [(start, end, kind) for kind, ranges in kinds.items() for start, end in union(ranges) if end - start <= most]
    starts: list[int] = []
    ends: list[int] = []
    hulls: list[pb.Vma] = []
    for start, end, (kind, number, offset, noreserve) in sorted(wide, key=lambda one: one[0] - one[1]):
        at = bisect_left(ends, start + 1)
        if at < len(starts) and starts[at] < end:
            continue
        starts.insert(at, start)
        ends.insert(at, end)
        hull = pb.Vma(start=start, end=end, kind=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE, noreserve=noreserve)
        if kind != pb.Vma.ANONYMOUS:
            hull.offset = offset + start
            hull.file, hull.shared = (number, 0) if kind == pb.Vma.FILE_PRIVATE else (0, number)
        hulls.insert(at, hull)
    return hulls


def _shares_of(
    line: _Line, alike: Sequence[pb.Process], tables: _Tables, here: vdso.Vdso, space: Room, comparison: _Comparison
) -> dict[int, Share]:
    own = {process.pid: _candidates(process, tables[process.pid].starts, here) for process in alike}
    hulls = _hulls((vma for candidates in own.values() for vma in candidates), space.mapping)
    starts = [hull.start for hull in hulls]
    inside: list[dict[int, list[Range]]] = [{} for _ in hulls]
    for pid, candidates in own.items():
        for vma in candidates:
            at = bisect_right(starts, vma.start) - 1
            if at >= 0 and vma.end <= hulls[at].end and _kind(vma) == _kind(hulls[at]):
                inside[at].setdefault(pid, []).append((vma.start // PAGE, vma.end // PAGE))
    settled = [_SharedMapping(line, tables, parts, comparison) for parts in inside]
    chosen: list[int] = []
    size = 0
    for at in sorted((at for at, one in enumerate(settled) if one.is_worth_it), key=lambda at: -settled[at].saved):
        more = size + hulls[at].end - hulls[at].start
        if more <= space.process and (space.tree is None or more * len(line.order) <= space.tree):
            chosen.append(at)
            size = more
    chosen = sorted(chosen[:MOST_HULLS])
    if not chosen:
        return {}
    handed = [hulls[at] for at in chosen]
    shares = {pid: Share(handed, heirs=frozenset(line.heirs[pid])) for pid in line.order}
    shares[next(iter(line.order))].first = True
    for at in chosen:
        for pid, share in shares.items():
            settled[at].add_to(pid, share)
    return shares


# -------------------------------------------------------------------------------------------- content


class _Comparison:
    """Finds the pages in which two contents differ. It stops comparing bytes if that finds nothing equal."""

    def __init__(self, peek: Peek | None) -> None:
        self._bytes = lru_cache(_COMPARED)(self._read)
        self._peek = peek
        self._credit = 0
        self._asked = 0

    def begin(self) -> None:
        """Start with another mapping or process."""
        self._credit = _TRIES

    def missing(self, wanted: _Pages, there: _Pages) -> list[Piece]:
        """The parts of `wanted` that are not in `there`."""
        self._asked += 1
        peek = self._peek is not None and (self._credit > 0 or self._asked % _SAMPLE == 0)
        at = {piece.page + k: (piece, k) for piece in there for k in range(piece.size)}
        found: list[Piece] = []
        equal = 0
        for piece in wanted:
            for k in range(piece.size):
                other = at.get(piece.page + k)
                if other is not None:
                    if (other[0].block, other[0].skip + other[1]) == (piece.block, piece.skip + k):
                        continue
                    if peek and self._page(piece, k) == self._page(*other):
                        equal += 1
                        continue
                last = found[-1] if found else None
                one = Piece(piece.page + k, 1, piece.block, piece.skip + k)
                if last and one == (last.page + last.size, 1, last.block, last.skip + last.size):
                    found[-1] = last._replace(size=last.size + 1)
                else:
                    found.append(one)
        if peek:
            self._credit += 1 if equal else -1
        return found

    def _page(self, piece: Piece, number: int) -> bytes:
        return self._bytes(piece)[number * PAGE : (number + 1) * PAGE]

    def _read(self, piece: Piece) -> bytes:
        assert self._peek
        return self._peek(piece.block, piece.skip * PAGE, piece.size * PAGE)


class _SharedMapping:
    """What one passed-on mapping contains in each process, before and after its children are born."""

    def __init__(
        self,
        line: _Line,
        tables: _Tables,
        parts: Mapping[int, Sequence[Range]],
        comparison: _Comparison,
    ) -> None:
        """Compute it.

        Args:
            line: which processes inherit from which.
            tables: the page table of each process.
            parts: the mappings of each process in this one, in pages.
            comparison: compares contents that differ.
        """
        self._parts = parts
        self._line = line
        self._comparison = comparison
        self._own = _contents(tables, parts)
        self._given: dict[int, list[Piece]] = {}
        self._kept: dict[int, list[Range]] = {}
        self._stale: dict[int, list[Range]] = {}
        self._left: dict[int, list[Piece]] = {}
        self._right: dict[int, int] = {}
        """How many inherited pages are right."""
        self.saved = 0
        """How many pages are saved, compared to each process filling its own."""
        if len(parts) > 1:
            self._compute()

    @property
    def is_worth_it(self) -> bool:
        """Whether this saves enough."""
        given = sum(piece.size for pieces in self._given.values() for piece in pieces)
        return self.saved > 0 and self.saved * WORTH >= given

    def add_to(self, pid: int, share: Share) -> None:
        """Add this mapping to all that a process has. Mappings come by address."""
        share.given += self._given.get(pid, ())
        share.kept += self._kept.get(pid, ())
        share.stale += self._stale.get(pid, ())
        share.left += self._left.get(pid, ())

    def _compute(self) -> None:
        wanted = self._wanted()
        there: dict[int, _Content] = {}
        done: dict[tuple[int, int, tuple[Range, ...]], int] = {}
        handed: dict[int, int] = {heir: pid for pid, heirs in self._line.heirs.items() for heir in heirs}
        for pid in self._line.order:
            have = there[handed[pid]] if pid in handed else {}
            if pid in wanted:
                have = there[pid] = self._give(pid, wanted.pop(pid), have)
            if pid in self._own:
                self._keep(pid, self._own[pid], have, done)

    def _wanted(self) -> dict[int, _Content]:
        """For each process with heirs the most frequent content of all of them, where at least two have content."""
        tallies: dict[int, dict[int, dict[_Pages, int]]] = {}
        found: dict[int, _Content] = {}
        for pid in reversed(self._line.order):
            if not (heirs := self._line.heirs[pid]):
                continue
            tally: dict[int, dict[_Pages, int]] = defaultdict(dict)
            # Its own first: with equal votes the first wins.
            leaves = [self._own.get(one, {}) for one in (pid, *(heir for heir in heirs if heir not in tallies))]
            for content, same in _counted(leaves):
                for place, pages in content.items():
                    votes = tally[place]
                    votes[pages] = votes.get(pages, 0) + same
            for heir in heirs:
                for place, more in tallies.pop(heir, {}).items():
                    votes = tally[place]
                    for pages, count in more.items():
                        votes[pages] = votes.get(pages, 0) + count
            tallies[pid] = tally
            most = ((place, max(votes, key=votes.__getitem__), sum(votes.values())) for place, votes in tally.items())
            found[pid] = {place: pages for place, pages, count in most if count > 1}
        return found

    def _give(self, pid: int, wanted: _Content, have: _Content) -> _Content:
        """The content when a process has filled all that it passes on."""
        given: list[Piece] = []
        after = dict(have)
        self._comparison.begin()
        for place, pages in wanted.items():
            there = have.get(place, ())
            if there != pages:
                given += self._comparison.missing(pages, there)
                after[place] = (*pages, *_without(there, pages))
        self._given[pid] = given
        self.saved -= sum(piece.size for piece in given)
        return after

    def _keep(
        self, pid: int, own: _Content, have: _Content, done: dict[tuple[int, int, tuple[Range, ...]], int]
    ) -> None:
        """Find out what of an inherited content a process keeps. `done` has those for which that is known."""
        parts = self._parts[pid]
        alike = done.setdefault((id(own), id(have), tuple(parts)), pid)
        if alike != pid:
            for what in (self._kept, self._left, self._stale):
                what[pid] = what[alike]  # type: ignore[assignment]
            self._right[pid] = self._right[alike]
            self.saved += self._right[pid]
            return
        starts = [start for start, _ in parts]
        right = [0] * len(parts)
        """The number of right pages in each mapping."""
        left: list[Piece] = []
        stale: list[Piece] = []
        self._comparison.begin()
        for place, pages in own.items():
            there = have.get(place)
            for piece in pages if there else ():
                right[bisect_right(starts, piece.page) - 1] += piece.size
            if there != pages:
                missing = self._comparison.missing(pages, there) if there else pages
                for piece in missing if there else ():
                    right[bisect_right(starts, piece.page) - 1] -= piece.size
                left += missing
                stale += _without(there or (), pages)
        for place in have.keys() - own.keys():
            stale += have[place]
        kept = [part for part, count in zip(parts, right, strict=True) if count]
        self._kept[pid] = [(start * PAGE, end * PAGE) for start, end in kept]
        self._left[pid] = [piece for piece in left if right[bisect_right(starts, piece.page) - 1]]
        old = union((piece.page * PAGE, (piece.page + piece.size) * PAGE) for piece in stale)
        self._stale[pid] = intersection(old, self._kept[pid])
        self._right[pid] = sum(right)
        self.saved += self._right[pid]


def _contents(tables: _Tables, parts: Mapping[int, Sequence[Range]]) -> dict[int, _Content]:
    """The content of each process's mappings. Those that have the same get the same object."""
    found: dict[int, _Content] = {}
    known: dict[tuple[object, ...], _Content] = {}
    for pid, mine in parts.items():
        rows = [column.tobytes() for start, end in mine for column in tables[pid].rows(start, end)]
        key = (*mine, *rows)
        if key not in known:
            known[key] = _content(tables[pid], mine)
        found[pid] = known[key]
    return found


def _counted(contents: Iterable[_Content]) -> Iterable[tuple[_Content, int]]:
    """Each content, with how often the same object is among them; in the order of the first."""
    found: dict[int, tuple[_Content, int]] = {}
    for content in contents:
        found[id(content)] = content, found.get(id(content), (content, 0))[1] + 1
    return found.values()


def _content(table: Columns, parts: Iterable[Range]) -> _Content:
    """The content of mappings, which are given in pages and sorted by address."""
    found: dict[int, list[Piece]] = {}
    for start, end in parts:
        for piece in table.pieces(start, end):
            page, count, block, skip = piece
            place = page // BLOCK_PAGES
            if (page + count - 1) // BLOCK_PAGES == place:
                found.setdefault(place, []).append(piece)
                continue
            while count:
                some = min(count, BLOCK_PAGES - page % BLOCK_PAGES)
                found.setdefault(page // BLOCK_PAGES, []).append(Piece(page, some, block, skip))
                page, count, skip = page + some, count - some, skip + some
    return {place: tuple(pieces) for place, pieces in found.items()}


def _without(pages: Iterable[Piece], others: Iterable[Piece]) -> list[Piece]:
    """`pages` without those that are also in `others`."""
    holes = union((piece.page, piece.page + piece.size) for piece in others)
    return [
        Piece(start, end - start, piece.block, piece.skip + start - piece.page)
        for piece in pages
        for start, end in subtract([(piece.page, piece.page + piece.size)], holes)
    ]
